-- Compares a server with the one that was last seen in its place.
--
-- KEYS: the server's own key. ARGV: what identifies the server and its data now, how long nobody
-- counts on it when that is new (ms), '1' when its clock has jumped.
-- Returns the time in ms, and how long nobody counts on it from now.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', KEYS[1], 'i', 'c')
local rests_until = tonumber(stored[2]) or 0
if stored[1] ~= ARGV[1] or ARGV[3] == '1' then
  rests_until = now + ARGV[2]
  redis.call('HSET', KEYS[1], 'i', ARGV[1], 'c', rests_until)
end
-- A clock that went back would make the rest longer than it is meant to be.
return { now, math.min(math.max(rests_until - now, 0), tonumber(ARGV[2])) }
