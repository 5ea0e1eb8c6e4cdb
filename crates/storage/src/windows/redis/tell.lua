-- Tells how many slots one instance has in use.
--
-- KEYS: the counter. ARGV: the instance, its slots, the number of this state, time to live (ms).

local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and tonumber(string.match(known, '^%d+ (%d+)')) >= tonumber(ARGV[3]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = string.format('%s %s %.0f', ARGV[2], ARGV[3], now + ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], state)
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[4])
return 1
