-- The fleet's verdict on one upstream. verdict.go has the contract: KEYS, ARGV,
-- result, and why it is one script.

local state_key, window_key, probes_key = KEYS[1], KEYS[2], KEYS[3]

local CLOSED, OPEN, HALF_OPEN = 0, 1, 2                                        -- State
local AUTO, FORCE_OPEN = 0, 1                                                  -- Mode
local FAILURE_RATIO, SLOW_RATIO, HARD_FAILURES, PROBE_FAILED = 1, 2, 3, 4      -- Reason
local PROBES_HEALTHY, OPEN_TIME_OVER, OPERATOR = 5, 6, 7
local HEALTHY, UNHEALTHY = 1, 2                                                -- outcome
local BUCKETS = 20 -- the window slides in steps of a twentieth
local RECENT = 3   -- its newest buckets, which are judged by themselves too
local SIGMAS = 4   -- how unlikely bad luck must be: 3 in 100,000

local op, channel = ARGV[1], ARGV[2]
local cfg = {}
for i, name in ipairs({'window', 'min_calls', 'failure_ratio', 'slow_ratio', 'margin', 'hard_failures',
  'open_for', 'max_open_for', 'forget', 'probes', 'lease', 'successes', 'ramp', 'jitter'}) do
  cfg[name] = tonumber(ARGV[2 + i])
end
local FIRST = 17 -- ARGV from here on belongs to the operation
local function arg(i) return tonumber(ARGV[FIRST + i - 1]) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- The record. epoch is the time of the last change in ms, strictly rising, so
-- it is also the version by which workers order what they hear. calls,
-- failures and slow are the window's while closed, else what decided.
-- probe_successes and probe_failures are those of the half-open period, and
-- stay in the one that follows.
local FIELDS = {'epoch', 'state', 'mode', 'reason', 'reopen_at', 'ramp_end', 'trips', 'run',
  'probe_successes', 'probe_failures', 'calls', 'failures', 'slow'}
local s, dirty, changed = {}, false, false
for i, value in ipairs(redis.call('HMGET', state_key, unpack(FIELDS))) do
  s[FIELDS[i]] = tonumber(value or 0)
end

local function save()
  local flat = {}
  for _, name in ipairs(FIELDS) do
    flat[#flat + 1] = name
    flat[#flat + 1] = string.format('%.0f', s[name])
  end
  redis.call('HSET', state_key, unpack(flat))
end

-- change begins a new period, with an empty window.
local function change(state, reason)
  if s.state ~= HALF_OPEN then s.probe_successes, s.probe_failures = 0, 0 end
  s.epoch = math.max(now, s.epoch + 1)
  s.state, s.reason = state, reason
  redis.call('DEL', window_key)
  dirty, changed = true, true
end

-- open takes its time from the trips, which the caller counts.
local function open(reason)
  local grown = cfg.open_for * 2 ^ math.min(s.trips - 1, 30)
  s.reopen_at = now + math.min(cfg.max_open_for, math.floor(grown * cfg.jitter))
  change(OPEN, reason)
end

local function close(reason, ramp)
  s.ramp_end, s.run = now + ramp, 0
  s.calls, s.failures, s.slow = 0, 0, 0
  change(CLOSED, reason)
end

-- window reads the live buckets into s. It returns the numbers of the current
-- bucket and the names of those that are over. A bucket is named by its
-- beginning in ms, so that a reader with another window adds up the right ones.
-- One of the future is left by a Redis whose clock went back. recent is the
-- part of s that the newest buckets hold: failures that begin at speed fill it
-- within a second or two, while the health before them fills the window for
-- longer.
local bucket = math.floor(math.floor(now * BUCKETS / cfg.window) * cfg.window / BUCKETS)
local recent = {}
local function count(part, calls, failures, slow)
  part.calls, part.failures, part.slow = part.calls + calls, part.failures + failures, part.slow + slow
end

local function window()
  s.calls, s.failures, s.slow = 0, 0, 0
  recent.calls, recent.failures, recent.slow = 0, 0, 0
  local flat = redis.call('HGETALL', window_key)
  local mine, over = {0, 0, 0}, {}
  for i = 1, #flat, 2 do
    local began = tonumber(flat[i])
    if began <= bucket - cfg.window or began > now then
      over[#over + 1] = flat[i]
    else
      local calls, failures, slow = string.match(flat[i + 1], '(%d+) (%d+) (%d+)')
      calls, failures, slow = tonumber(calls), tonumber(failures), tonumber(slow)
      count(s, calls, failures, slow)
      if began * BUCKETS > bucket * BUCKETS - RECENT * cfg.window then count(recent, calls, failures, slow) end
      if began == bucket then mine = {calls, failures, slow} end
    end
  end
  return mine, over
end

local function add(healthy, unhealthy, slow)
  local mine, over = window()
  if #over > 0 then redis.call('HDEL', window_key, unpack(over)) end
  local calls = healthy + unhealthy
  redis.call('HSET', window_key, string.format('%.0f', bucket),
    string.format('%.0f %.0f %.0f', mine[1] + calls, mine[2] + unhealthy, mine[3] + slow))
  redis.call('PEXPIRE', window_key, cfg.window + 60000)
  count(s, calls, unhealthy, slow)
  count(recent, calls, unhealthy, slow)
  local run = healthy > 0 and 0 or s.run + unhealthy
  if run ~= s.run then
    s.run, dirty = run, true
  end
end

-- exceeds: the share is there, and an upstream at the tolerated share would
-- show it less than once in 30,000 looks.
local function exceeds(hits, calls, ratio)
  local safe = math.max(0, ratio - cfg.margin)
  local luck = SIGMAS * math.sqrt(calls * safe * (1 - safe))
  if cfg.margin == 0 then luck = 0 end
  return hits + 1e-9 >= ratio * calls and hits + 1e-9 >= safe * calls + luck
end

-- found is the reason to open that the window or its recent part gives, and
-- that part. Many calls decide in the recent part, few take the whole window.
local function found()
  for _, part in ipairs({s, recent}) do
    if part.calls >= cfg.min_calls then
      if exceeds(part.failures, part.calls, cfg.failure_ratio) then return FAILURE_RATIO, part end
      if exceeds(part.slow, part.calls, cfg.slow_ratio) then return SLOW_RATIO, part end
    end
  end
end

local function judge()
  local reason, part = found()
  if cfg.hard_failures > 0 and s.run >= cfg.hard_failures then reason, part = HARD_FAILURES, s end
  if not reason then return end
  s.calls, s.failures, s.slow = part.calls, part.failures, part.slow
  s.trips = now - s.epoch >= cfg.forget and 1 or s.trips + 1
  open(reason)
end

-- hopeless: after one more failed probe. A period that begins with a failure
-- is. Else it is when even enough successes could not bring the failed share
-- below the ratio that opens; near 1 that takes forever, so min_calls failures
-- are the limit.
local function hopeless()
  local failed = s.probe_failures
  return s.probe_successes == 0 or failed >= cfg.min_calls
    or failed + 1e-9 >= cfg.failure_ratio * (failed + cfg.successes)
end

-- Leases. A score that is further away than a lease can be is from a clock
-- that went back.
local function drop_dead_probes()
  redis.call('ZREMRANGEBYSCORE', probes_key, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', probes_key, now + 2 * cfg.lease, '+inf')
end

local function live_probes()
  return redis.call('ZCOUNT', probes_key, '(' .. string.format('%.0f', now), '+inf')
end

local function lease(token)
  redis.call('ZADD', probes_key, now + cfg.lease, token)
  redis.call('PEXPIRE', probes_key, 2 * cfg.lease)
end

local ops, granted = {}, 0

function ops.fold()
  local healthy, unhealthy, slow = arg(2), arg(3), arg(4)
  if healthy + unhealthy > 0 and s.state == CLOSED and arg(1) == s.epoch then
    add(healthy, unhealthy, slow)
    if s.mode == AUTO then judge() end
  end
  for i = FIRST + 4, #ARGV do
    if redis.call('ZSCORE', probes_key, ARGV[i]) then lease(ARGV[i]) end
  end
end

function ops.permit()
  if s.state ~= HALF_OPEN then return end
  drop_dead_probes()
  if live_probes() < cfg.probes then
    lease(ARGV[FIRST])
    granted = 1
  end
end

-- An outcome counts as long as its half-open period lasts, with or without a
-- lease: it is evidence either way. An upstream that answered meanwhile is not
-- left alone for longer than before.
function ops.settle()
  redis.call('ZREM', probes_key, ARGV[FIRST])
  if s.state ~= HALF_OPEN or arg(2) ~= s.epoch then return end
  if arg(3) == HEALTHY then
    s.probe_successes, dirty = s.probe_successes + 1, true
    if s.probe_successes >= cfg.successes then close(PROBES_HEALTHY, cfg.ramp) end
  elseif arg(3) == UNHEALTHY then
    s.probe_failures, dirty = s.probe_failures + 1, true
    if not hopeless() then return end
    if s.probe_successes == 0 then s.trips = s.trips + 1 end
    open(PROBE_FAILED)
  end
end

function ops.override()
  if arg(1) == s.mode then return end
  s.mode = arg(1)
  s.reopen_at, s.trips = 0, 0
  close(OPERATOR, 0)
  if s.mode == FORCE_OPEN then s.state = OPEN end
end

local function result()
  if s.state == CLOSED then window() end
  local probes = s.state == CLOSED and 0 or live_probes()
  return {s.epoch, math.max(0, now - s.epoch), s.state, s.mode, s.reason, math.max(0, s.reopen_at - now),
    math.max(0, s.ramp_end - now), s.trips, s.run, s.probe_successes, s.probe_failures,
    s.calls, s.failures, s.slow, probes, granted}
end

if s.epoch == 0 then -- nothing stored: a new upstream, or a Redis that lost its data
  s.epoch, dirty = now, true
end
if op == 'read' then return result() end -- nothing is written

if s.reopen_at > now + cfg.max_open_for then -- Redis' clock went back
  s.reopen_at, dirty = now + cfg.max_open_for, true
end
if s.state == OPEN and s.mode == AUTO and now >= s.reopen_at then
  change(HALF_OPEN, OPEN_TIME_OVER)
end
ops[op]()
if s.state ~= CLOSED then drop_dead_probes() end
if dirty then save() end
if changed then redis.call('PUBLISH', channel, string.format('%.0f', s.epoch)) end
return result()
