-- Tells how many slots one instance has in use.
--
-- KEYS: the group's own key, the counter. ARGV: the instance, its slots, the number of this state,
-- time to live (ms).

local known = redis.call('HGET', KEYS[2], ARGV[1])
if known and tonumber(string.match(known, '^%d+ (%d+)')) >= tonumber(ARGV[3]) then
  return 0
end
local now = now_of(KEYS[1], redis.call('HGET', KEYS[1], 't'))
local state = string.format('%s %s %.0f', ARGV[2], ARGV[3], now + ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], state)
redis.call('PEXPIREAT', KEYS[2], now + 2 * ARGV[4])
keep(KEYS[1], now)
return 1
