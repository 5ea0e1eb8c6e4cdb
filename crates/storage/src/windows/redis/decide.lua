-- Takes what is asked of every counter, or nothing of any.
--
-- KEYS: the group's own key, then a key for each counter.
-- ARGV: the marker that the caller knows (or ''), one to set where there is none, how long a group
--   rests that lost its counters (ms), the caller's name, then for each counter either
--   'w' width before most amount dry count-of-unsent (age amount)*
--   'c' most slots-of-the-caller version time-to-live dry
-- Returns: status, the clock in ms, marker or rest, then four numbers for each counter: used, resets in, is
--   over, wait or bucket.
--   status 1: admitted; 0: refused; 2: what was counted is lost; 3: it was lost, and the group rests.

local meta = KEYS[1]
local stored = redis.call('HMGET', meta, 'm', 't', 'c')
local now, clock = now_of(meta, stored[2])
local marker = stored[1]
if not marker then
  marker = ARGV[2]
  redis.call('HSET', meta, 'm', marker)
end
local rests_until = tonumber(stored[3]) or 0
if ARGV[1] ~= '' and ARGV[1] ~= marker and rests_until <= now then
  -- The caller was admitted here, and that is not known any more. Nobody may count on this group
  -- until what is forgotten would have left every window.
  redis.call('HSET', meta, 'c', now + ARGV[3])
  keep(meta, now)
  return { 2, clock, tonumber(ARGV[3]) }
end
if rests_until > now then
  return { 3, clock, rests_until - now }
end

local is_admitted = true
local counters = {}
local at = 5
for i = 2, #KEYS do
  local c
  if ARGV[at] == 'w' then
    c = load_window(KEYS[i], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), now)
    c.is_window = true
    c.most, c.ask = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local is_dry, unsent = ARGV[at + 5] == '1', tonumber(ARGV[at + 6])
    at = at + 7
    for _ = 1, unsent do
      -- A little later than it was, by the time that the message took.
      local bucket = math.floor((now - ARGV[at]) / c.width)
      if bucket >= c.current - c.before then
        add(c, math.min(bucket, c.current), tonumber(ARGV[at + 1]))
      end
      at = at + 2
    end
    -- Not as a sum, which may be above 2^53.
    c.is_over = c.ask > c.most - c.sum
    is_admitted = is_admitted and (is_dry or not c.is_over)
  else
    c = { key = KEYS[i], most = tonumber(ARGV[at + 1]), used = tonumber(ARGV[at + 2]) }
    c.version, c.ttl = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local is_dry = ARGV[at + 5] == '1'
    at = at + 6
    c.others = 0
    local fields = redis.call('HGETALL', c.key)
    for f = 1, #fields, 2 do
      local used, version, ends = string.match(fields[f + 1], '^(%d+) (%d+) (%d+)$')
      if tonumber(ends) <= now then
        redis.call('HDEL', c.key, fields[f])
      elseif fields[f] == ARGV[4] then
        c.known_version = tonumber(version)
      else
        c.others = c.others + tonumber(used)
      end
    end
    c.is_over = c.others + c.used > c.most
    is_admitted = is_admitted and (is_dry or not c.is_over)
  end
  counters[#counters + 1] = c
end

local reply = { is_admitted and 1 or 0, clock, marker }
for _, c in ipairs(counters) do
  local used, resets, last = 0, 0, 0
  if c.is_window then
    if is_admitted then
      if c.ask > 0 then
        add(c, c.current, c.ask)
      end
      last = c.current
    elseif c.is_over then
      last = wait_for(c, c.ask, c.most)
    end
    used = c.sum
    resets = c.sum > 0 and leaves_in(c, c.last) or 0
  else
    if is_admitted then
      used = c.others + c.used
      if c.version > (c.known_version or 0) then
        local state = string.format('%.0f %.0f %.0f', c.used, c.version, now + c.ttl)
        redis.call('HSET', c.key, ARGV[4], state)
        redis.call('PEXPIREAT', c.key, now + 2 * c.ttl)
      end
    else
      used = c.others + c.used - 1
    end
  end
  reply[#reply + 1] = used
  reply[#reply + 1] = resets
  reply[#reply + 1] = c.is_over and 1 or 0
  reply[#reply + 1] = last
end
keep(meta, now)
return reply
