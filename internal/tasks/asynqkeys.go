package tasks

import "github.com/redis/go-redis/v9"

// What Ferry knows of asynq's insides stands in this file and nowhere else: key names and the four
// commands by which asynq itself puts a running task back (asynq v0.26.0, internal/rdb, requeueCmd).
// TestAsynqKeys fails when another asynq keeps its tasks otherwise.

func asynqPrefix(queue string) string     { return "asynq:{" + queue + "}:" }
func asynqLease(queue string) string      { return asynqPrefix(queue) + "lease" }
func asynqActive(queue string) string     { return asynqPrefix(queue) + "active" }
func asynqPending(queue string) string    { return asynqPrefix(queue) + "pending" }
func asynqPaused(queue string) string     { return asynqPrefix(queue) + "paused" }
func asynqTaskPrefix(queue string) string { return asynqPrefix(queue) + "t:" }

// reapScript puts tasks whose worker has stopped renewing its lease back to the head of their queue.
//
//	KEYS[1] lease  KEYS[2] active  KEYS[3] pending
//	ARGV[1] leases that end before this are dead, in s since 1970  [2] prefix of the task keys
//	     [3] at most this many
//	result  the IDs put back
//
// An ID whose task is gone is removed: asynq would carry it for ever. Atomic, so that a worker that ends
// its task at the same moment either comes first, or is told NOT FOUND and has its answer in the record.
var reapScript = redis.NewScript(`
local back = {}
for _, id in ipairs(redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", ARGV[1], "LIMIT", 0, ARGV[3])) do
  redis.call("ZREM", KEYS[1], id)
  local was = redis.call("LREM", KEYS[2], 0, id)
  local key = ARGV[2] .. id
  if redis.call("HEXISTS", key, "msg") == 1 then
    if was > 0 then
      redis.call("RPUSH", KEYS[3], id)
      redis.call("HSET", key, "state", "pending")
      back[#back + 1] = id
    end
  else
    redis.call("DEL", key)
  end
end
return back
`)

// parkScript pauses a queue for a while, unless an operator has paused it: asynq's dequeue only asks
// whether the key is there, so ours may have another value, and an end.
//
//	KEYS[1] paused
//	ARGV[1] our mark  [2] for this many ms; 0: lift our pause
//	result  1 if the queue is parked by us now, else 0
//
// Atomic, so that an operator's pause that comes in between is neither replaced nor lifted.
var parkScript = redis.NewScript(`
local by = redis.call("GET", KEYS[1])
if by and by ~= ARGV[1] then return 0 end
if ARGV[2] == "0" then
  redis.call("DEL", KEYS[1])
  return 0
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
`)
