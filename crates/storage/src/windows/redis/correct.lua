-- Replaces an estimate by what was used. Must be sent at most once.
--
-- KEYS: the group's own key, the counter. ARGV: the marker at the time of the decision, width,
-- before, the bucket it was taken from, what was too much, what was too little.
-- Returns 1, or 0 where the counter is not the same any more.

local stored = redis.call('HMGET', KEYS[1], 'm', 't')
if stored[1] ~= ARGV[1] then
  return 0
end
local now = now_of(KEYS[1], stored[2])
local w = load_window(KEYS[2], tonumber(ARGV[2]), tonumber(ARGV[3]), now)
local bucket, surplus, shortage = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if surplus > 0 and bucket >= w.current - w.before then
  local there = tonumber(redis.call('HGET', w.key, bucket)) or 0
  local back = math.min(there, surplus)
  if back > 0 then
    redis.call('HSET', w.key, bucket, there - back, 's', w.sum - back)
  end
end
if shortage > 0 then
  add(w, w.current, shortage)
end
keep(KEYS[1], now)
return 1
