package tasks

import "github.com/redis/go-redis/v9"

// What Ferry knows of asynq's insides stands in this file and nowhere else: key names and the four
// commands by which asynq itself puts a running task back (asynq v0.26.0, internal/rdb, requeueCmd).
// TestAsynqKeys fails when another asynq keeps its tasks otherwise.

func asynqPrefix(queue string) string     { return "asynq:{" + queue + "}:" }
func asynqLease(queue string) string      { return asynqPrefix(queue) + "lease" }
func asynqActive(queue string) string     { return asynqPrefix(queue) + "active" }
func asynqPending(queue string) string    { return asynqPrefix(queue) + "pending" }
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
