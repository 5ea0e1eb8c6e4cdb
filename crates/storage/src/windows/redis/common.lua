-- What the scripts of the window counters share. It is put in front of each of them.
--
-- Names carry a version: instances of two releases that run side by side never read what the other
-- one wrote in another form. Numbers are integers below 2^53.

local FINE = 50 -- ms; every bucket is a multiple of it

-- Returns the time in ms by which a group counts, and the time of the clock. The first never goes
-- back, whatever the clock does: the latest time is kept, as exactly as buckets need it.
local function now_of(meta, stored)
  local time = redis.call('TIME')
  local clock = time[1] * 1000 + math.floor(time[2] / 1000)
  local now = clock
  local latest = tonumber(stored) or 0
  local fine = math.floor(now / FINE)
  if fine > latest then
    redis.call('HSET', meta, 't', fine)
  elseif fine < latest then
    now = latest * FINE
  end
  return now, clock
end

-- Keeps what is known of a group longer than any of its counters.
local function keep(meta, now)
  redis.call('PEXPIREAT', meta, now + 600000)
end

-- Forgets what has left a window. A window is a hash: `s` is the sum of all buckets, `o` a number
-- that no bucket is below, `l` the last bucket, and each bucket has its number.
local function load_window(key, width, before, now)
  local current = math.floor(now / width)
  local f = redis.call('HMGET', key, 's', 'o', 'l', current)
  local w = {
    key = key, width = width, before = before, now = now, current = current,
    sum = tonumber(f[1]) or 0, oldest = tonumber(f[2]) or current, last = tonumber(f[3]) or -1,
    amount = tonumber(f[4]) or 0,
  }
  local first = current - before
  if w.last < first then
    if w.last >= 0 then
      redis.call('DEL', key)
    end
    w.sum, w.oldest, w.last, w.amount = 0, current, -1, 0
  elseif w.oldest < first then
    local gone = {}
    for b = w.oldest, first - 1 do
      gone[#gone + 1] = b
    end
    local amounts = redis.call('HMGET', key, unpack(gone))
    for _, amount in ipairs(amounts) do
      w.sum = w.sum - (tonumber(amount) or 0)
    end
    w.oldest = first
    redis.call('HDEL', key, unpack(gone))
    redis.call('HSET', key, 's', w.sum, 'o', first)
  end
  return w
end

-- Adds to a bucket that counts.
local function add(w, bucket, amount)
  if bucket == w.current then
    w.amount = w.amount + amount
    redis.call('HSET', w.key, bucket, w.amount)
  else
    redis.call('HINCRBY', w.key, bucket, amount)
  end
  w.sum = w.sum + amount
  w.oldest = math.min(w.oldest, bucket)
  local is_later = bucket > w.last
  w.last = math.max(w.last, bucket)
  redis.call('HSET', w.key, 's', w.sum, 'o', w.oldest, 'l', w.last)
  if is_later then
    -- At a time of the counter's clock: by a time to live it would be forgotten too early after the
    -- server's clock has gone back. Twice as late as it counts, so that this never decides.
    redis.call('PEXPIREAT', w.key, w.now + 2 * w.width * (w.before + 1) + 1000)
  end
end

-- How long a bucket still counts.
local function leaves_in(w, bucket)
  return math.max((bucket + w.before + 1) * w.width - w.now, 0)
end

-- How long it takes until an amount fits.
local function wait_for(w, amount, most)
  local numbers = {}
  for b = w.oldest, w.current do
    numbers[#numbers + 1] = b
  end
  local amounts = redis.call('HMGET', w.key, unpack(numbers))
  local left, wait = w.sum, 0
  for i, number in ipairs(numbers) do
    if amount <= most - left then
      break
    end
    local here = tonumber(amounts[i]) or 0
    if here > 0 then
      left = left - here
      wait = leaves_in(w, number)
    end
  end
  return wait
end
