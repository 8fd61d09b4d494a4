package tasks

import "github.com/redis/go-redis/v9"

// Every script changes one job or one part ({n} in its keys), so that it is atomic on a single server,
// under Sentinel and on Cluster alike. Keys that a script builds from a prefix have that prefix's hash
// tag. Times are µs since 1970 by the caller's clock.
//
// A Redis that is full refuses a script at its first write, if that may take memory; after another write it
// lets the script go on. So what creates jobs begins with a write that is refused, and what takes them
// further with one that never is (ZREM, HDEL): a full Redis takes no new jobs, and ends those it has.

// createScript writes the record of a new job.
//
//	KEYS[1] record  KEYS[2] due  KEYS[3] prefix of the state indexes
//	ARGV[1] id  [2] created_at  [3] expires_at  [4] hash of the submission
//	     [5] "1" to write although the ID is taken: only who has written can ask whether it is on disk
//	     [6...] field, value, ...
//	result  {1, ""} created, by this call or by an earlier try of it whose reply was lost
//	        {0, hash} the ID is taken, by a submission with this hash
//
// Atomic, because the record is also the claim on its idempotency key.
var createScript = redis.NewScript(`
local had = redis.call("HMGET", KEYS[1], "hash", "created", "runs")
if had[2] then
  if ARGV[5] == "1" then redis.call("HSET", KEYS[1], "hash", had[1]) end
  if had[1] == ARGV[4] and had[2] == ARGV[2] and not had[3] then return {1, ""} end
  return {0, had[1]}
end
redis.call("HSET", KEYS[1], "state", "queued", "created", ARGV[2], "updated", ARGV[2], "due", ARGV[3], "hash", ARGV[4], unpack(ARGV, 6))
redis.call("ZADD", KEYS[3] .. "queued", ARGV[2], ARGV[1])
redis.call("ZADD", KEYS[2], ARGV[3], ARGV[1])
return {1, ""}
`)

// claimScript gives a job to a run.
//
//	KEYS[1] record  KEYS[2] due  KEYS[3] prefix of the state indexes
//	ARGV[1] id  [2] now  [3] by what name the run is known; see [Fleet]
//	     [4] which run may be taken for lost, "" for none
//	result  {"", record as field, value, ...} claimed
//	        {state} ended; {"none"} no record
//	        {"running", run, by} another run has it
//
// The run number is the fencing epoch: while a run has the job, no earlier one can change it. A lost run
// is noted in the ledger and counted. A claim whose reply was lost and that is made again changes nothing
// more.
var claimScript = redis.NewScript(`
local had = redis.call("HMGET", KEYS[1], "state", "runs", "by", "created")
local state = had[1]
if not state then return {"none"} end
if state == "succeeded" or state == "failed" or state == "canceled" or state == "expired" then return {state} end
if state == "running" then
  if had[3] == ARGV[3] then return {"", redis.call("HGETALL", KEYS[1])} end
  if had[2] ~= ARGV[4] then return {"running", had[2], had[3] or ""} end
  redis.call("HDEL", KEYS[1], "run_at", "why")
  redis.call("HINCRBY", KEYS[1], "crashes", 1)
  redis.call("HINCRBY", KEYS[1], "lost", 1)
  local lost = '{"n":' .. (redis.call("HGET", KEYS[1], "attempts") or "0") .. ',"run":' .. had[2] ..
    ',"class":"transient","reason":"worker_lost","sent":false,"outcome_unknown":true}\n'
  redis.call("HSET", KEYS[1], "ledger", (redis.call("HGET", KEYS[1], "ledger") or "") .. lost)
else
  redis.call("ZREM", KEYS[3] .. state, ARGV[1])
  redis.call("ZADD", KEYS[3] .. "running", had[4], ARGV[1])
  redis.call("HDEL", KEYS[1], "run_at", "why")
end
redis.call("HINCRBY", KEYS[1], "runs", 1)
redis.call("HSET", KEYS[1], "state", "running", "updated", ARGV[2], "by", ARGV[3])
redis.call("HSETNX", KEYS[1], "started", ARGV[2])
redis.call("PUBLISH", "ferry:state:" .. ARGV[1], "running")
return {"", redis.call("HGETALL", KEYS[1])}
`)

// moveScript takes a job from one state to another: every change after the claim, by a run or by a
// request, is this one.
//
//	KEYS[1] record  KEYS[2] due  KEYS[3] prefix of the state indexes
//	ARGV[1] id  [2] now  [3] run that asks, "" for a request from outside  [4] allowed states, ",a,b,"
//	     [5] new state  [6] new due time, "" to keep it  [7] ledger lines to append
//	     [8] attempts to add  [9] retries to add  [10] snoozes to add  [11] fields to delete, ",a,b,"
//	     [12...] field, value, ...
//	result  {1, state before, queue} done
//	        {0, state, run} refused, because of the state or because another run has the job;
//	        {0, "", ""} no record
//
// A run may be late: if its state is allowed, a job that waits is changed by it, for nobody has the job.
//
// A cancel of a running job is announced to the workers: the record says so first, so that a message
// that gets lost costs a call but no consistency.
var moveScript = redis.NewScript(`
local had = redis.call("HMGET", KEYS[1], "state", "runs", "created", "queue")
local state = had[1]
if not state then return {0, "", ""} end
local overtaken = ARGV[3] ~= "" and state == "running" and ARGV[3] ~= had[2]
if overtaken or not string.find(ARGV[4], "," .. state .. ",", 1, true) then
  return {0, state, had[2] or "0"}
end
redis.call("ZREM", KEYS[3] .. state, ARGV[1])
for field in string.gmatch(ARGV[11], "[^,]+") do redis.call("HDEL", KEYS[1], field) end
redis.call("HSET", KEYS[1], "state", ARGV[5], "updated", ARGV[2], unpack(ARGV, 12))
if ARGV[7] ~= "" then
  redis.call("HSET", KEYS[1], "ledger", (redis.call("HGET", KEYS[1], "ledger") or "") .. ARGV[7])
end
if ARGV[8] ~= "0" then redis.call("HINCRBY", KEYS[1], "attempts", ARGV[8]) end
if ARGV[9] ~= "0" then redis.call("HINCRBY", KEYS[1], "retries", ARGV[9]) end
if ARGV[10] ~= "0" then redis.call("HINCRBY", KEYS[1], "snoozes", ARGV[10]) end
if ARGV[6] ~= "" then
  redis.call("HSET", KEYS[1], "due", ARGV[6])
  redis.call("ZADD", KEYS[2], ARGV[6], ARGV[1])
end
redis.call("ZADD", KEYS[3] .. ARGV[5], had[3], ARGV[1])
if ARGV[3] == "" and state == "running" then redis.call("PUBLISH", "ferry:cancel", ARGV[1]) end
redis.call("PUBLISH", "ferry:state:" .. ARGV[1], ARGV[5])
return {1, state, had[4] or ""}
`)

// deleteScript removes an ended job.
//
//	KEYS[1] record  KEYS[2] due  KEYS[3] prefix of the state indexes
//	ARGV[1] id
//	result  {1, state, queue} gone  {0, state, ""} it is still open  {0, "", ""} no record
var deleteScript = redis.NewScript(`
local had = redis.call("HMGET", KEYS[1], "state", "queue")
local state = had[1]
if not state then return {0, "", ""} end
if not (state == "succeeded" or state == "failed" or state == "canceled" or state == "expired") then return {0, state, ""} end
redis.call("ZREM", KEYS[3] .. state, ARGV[1])
redis.call("ZREM", KEYS[2], ARGV[1])
redis.call("DEL", KEYS[1])
return {1, state, had[2] or ""}
`)

// sweepScript ends the jobs of one part whose time has come: an open job expires, an ended one is
// deleted. A running job is left to its run, which sees for itself that the time is over.
//
//	KEYS[1] prefix of the records  KEYS[2] due  KEYS[3] prefix of the state indexes
//	ARGV[1] now  [2] at most this many  [3] look again at a running job after this many µs
//	     [4] the failure of an expired job, as JSON  [5] and [6] the same, before and after the reason for
//	     which it waited  [7...] upstream, reason, ...: why the jobs of an upstream are held back now
//	result  {how many were due, id of an expired job, ...}
//
// Atomic per batch; the batch keeps Redis' pause short.
var sweepScript = redis.NewScript(`
local ids = redis.call("ZRANGEBYSCORE", KEYS[2], "-inf", ARGV[1], "LIMIT", 0, ARGV[2])
local out = {#ids}
local held = {}
for i = 7, #ARGV, 2 do held[ARGV[i]] = ARGV[i + 1] end
for _, id in ipairs(ids) do
  local key = KEYS[1] .. id
  local had = redis.call("HMGET", key, "state", "created", "retention", "why", "queue")
  local state = had[1]
  if not state then
    redis.call("ZREM", KEYS[2], id)
  elseif state == "running" then
    redis.call("ZREM", KEYS[2], id)
    redis.call("ZADD", KEYS[2], string.format("%.0f", ARGV[1] + ARGV[3]), id)
  elseif state == "queued" or state == "snoozed" or state == "retrying" then
    local due = string.format("%.0f", ARGV[1] + had[3])
    local failure = ARGV[4]
    local why = had[4] or held[string.match(had[5], "^(.*):")]
    if why then failure = ARGV[5] .. why .. ARGV[6] end
    redis.call("HDEL", key, "run_at", "why")
    redis.call("HSET", key, "state", "expired", "updated", ARGV[1], "ended", ARGV[1], "due", due, "error", failure)
    redis.call("ZADD", KEYS[2], due, id)
    redis.call("ZREM", KEYS[3] .. state, id)
    redis.call("ZADD", KEYS[3] .. "expired", had[2], id)
    redis.call("PUBLISH", "ferry:state:" .. id, "expired")
    out[#out + 1] = id
  else
    redis.call("ZREM", KEYS[3] .. state, id)
    redis.call("ZREM", KEYS[2], id)
    redis.call("DEL", key)
  end
end
return out
`)
