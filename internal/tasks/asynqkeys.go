package tasks

import "github.com/redis/go-redis/v9"

// What Ferry knows of asynq's insides stands in this file and nowhere else: key names and the four
// commands by which asynq itself puts a running task back (asynq v0.26.0, internal/rdb, requeueCmd).
// TestAsynqKeys fails when another asynq keeps its tasks otherwise.

func asynqPrefix(queue string) string     { return "asynq:{" + queue + "}:" }
func asynqLease(queue string) string      { return asynqPrefix(queue) + "lease" }
func asynqActive(queue string) string     { return asynqPrefix(queue) + "active" }
func asynqPending(queue string) string    { return asynqPrefix(queue) + "pending" }
func asynqArchived(queue string) string   { return asynqPrefix(queue) + "archived" }
func asynqTaskPrefix(queue string) string { return asynqPrefix(queue) + "t:" }

// openTask reports whether a task whose hash has this state will run, or runs. "" is no task.
func openTask(state string) bool {
	return state != "" && state != "completed" && state != "archived"
}

// reapScript puts tasks back to the head of their queue, each unless its lease has been renewed.
//
//	KEYS[1] lease  KEYS[2] active  KEYS[3] pending
//	ARGV[1] prefix of the task keys  [2...] ID, end of its lease as it was seen, ...
//	result  the IDs put back
//
// An ID whose task is gone is removed: asynq would carry it for ever. Atomic, so that a worker that ends
// its task at the same moment either comes first, or is told NOT FOUND and has its answer in the record.
var reapScript = redis.NewScript(`
local back = {}
for i = 2, #ARGV, 2 do
  local id, key = ARGV[i], ARGV[1] .. ARGV[i]
  local ends = redis.call("ZSCORE", KEYS[1], id)
  if ends and tonumber(ends) == tonumber(ARGV[i + 1]) then
    redis.call("ZREM", KEYS[1], id)
    local was = redis.call("LREM", KEYS[2], 0, id)
    if redis.call("HEXISTS", key, "msg") == 0 then
      redis.call("DEL", key)
    elseif was > 0 then
      redis.call("RPUSH", KEYS[3], id)
      redis.call("HSET", key, "state", "pending")
      back[#back + 1] = id
    end
  end
end
return back
`)

// pruneScript removes the oldest archived tasks, which only show what the records of failed jobs say.
// asynq keeps 9,999 of a queue; when thousands of them are 90 days old it can no longer trim them, and
// then it can archive no other (measured on v0.26.0).
//
//	KEYS[1] archived  ARGV[1] prefix of the task keys  [2] keep this many  [3] remove at most this many
//	result  how many were removed
var pruneScript = redis.NewScript(`
local surplus = math.min(redis.call("ZCARD", KEYS[1]) - ARGV[2], tonumber(ARGV[3]))
if surplus <= 0 then return 0 end
for _, id in ipairs(redis.call("ZRANGE", KEYS[1], 0, surplus - 1)) do
  redis.call("ZREM", KEYS[1], id)
  redis.call("DEL", ARGV[1] .. id)
end
return surplus
`)
