package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// crowdConfig lets a fleet work as fast as it can. The breaker looks often whether the upstream is back, which is
// when jobs that wait could be churned.
const crowdConfig = `
worker: {concurrency: 256}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    pool: {max_idle: 256}
    breaker: {open_for: 5s, max_open_for: 10s, ramp: 10s}
`

// crowd is how many jobs wait for the upstream.
func crowd() int {
	if raceDetector {
		return long(3000, 100_000)
	}
	return long(10_000, 100_000)
}

// While the upstream takes no calls its jobs lie still; when it is back they do not fall upon it.
func TestBreakerHoldsACrowdStill(t *testing.T) {
	s := start(t, options{apis: 2, workers: fleetSize, config: crowdConfig, upstream: upstreamtest.Config{KeepJournal: 1}})
	rdb := store(t, s.redis.Addr())
	pass(t, time.Second)
	idle := commandsPerSecond(t, rdb, long(3*time.Second, 10*time.Second))
	s.open()
	began := time.Now()
	jobs := s.submitAll(crowd(), func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	figure(t, "crowd_jobs", len(jobs))
	figure(t, "crowd_submitted_in", time.Since(began))

	outage := long(10*time.Second, time.Minute)
	waiting := commandsPerSecond(t, rdb, outage)
	figure(t, "crowd_redis_commands_per_second_idle", int(idle))
	figure(t, "crowd_redis_commands_per_second_open", int(waiting))
	if waiting > 2*idle {
		t.Errorf("%.0f Redis commands a second while %d jobs wait for the upstream, want at most twice the %.0f of idling", waiting, len(jobs), idle)
	}

	calls := startSampler(t, s.upstream.Requests)
	up := time.Now()
	s.upstream.Up()
	closed := latest(s.awaitChange(up, "closed", 20*time.Second))
	probing, _ := s.workers[0].firstChange(up, "half-open")
	var first time.Time
	until(t, time.Second, "the first call is noted", func() (noted bool) {
		first, noted = calls.grown(up)
		return noted
	})
	figure(t, "crowd_up_to_first_job", first.Sub(up))
	figure(t, "crowd_half_open_to_first_job", first.Sub(probing.Time))
	figure(t, "crowd_half_open_to_closed", closed.Sub(probing.Time))
	if took := first.Sub(probing.Time); took > 2*time.Second {
		t.Errorf("the first job reached the upstream %s after the open time, want at most 2s", took)
	}
	ended := s.waitAll(jobs, 10*time.Minute)
	calls.end()
	wantState(t, ended, client.StateSucceeded)
	figure(t, "crowd_closed_to_last_job", lastEnd(ended).Sub(closed))
	wantRamp(t, calls, closed, lastEnd(ended))
	wantUnspent(t, ended)
}

// rampOver is the ramp of crowdConfig.
const rampOver = 10 * time.Second

// wantRamp fails the test unless the calls of each second of the ramp are at most the share that may pass by its
// end, of what the fleet does afterwards.
func wantRamp(t *testing.T, calls *sampler, closed, end time.Time) {
	t.Helper()
	rampEnd := closed.Add(rampOver)
	if end.Sub(rampEnd) < 2*time.Second {
		t.Log("too few jobs for a ramp: they were through before its end")
		figure(t, "crowd_calls_by_second", perSecond(calls, closed, end))
		return
	}
	rates := perSecond(calls, closed, rampEnd)
	full := float64(calls.between(rampEnd, end)) / end.Sub(rampEnd).Seconds()
	figure(t, "crowd_calls_by_second", rates)
	figure(t, "crowd_calls_per_second_afterwards", int(full))
	for i, n := range rates {
		share := 0.1 + 0.9*float64(i+1)/float64(len(rates))
		if float64(n) > 1.5*share*full {
			t.Errorf("second %d after closing: %d calls, want at most %.0f %% of %.0f, and half as many again", i+1, n, 100*share, full)
		}
	}
}

func perSecond(calls *sampler, from, to time.Time) (rates []int64) {
	for at := from; at.Before(to); at = at.Add(time.Second) {
		rates = append(rates, calls.between(at, at.Add(time.Second)))
	}
	return rates
}

// wantUnspent fails the test if waiting for the upstream has cost the jobs attempts. The few that looked whether it
// was back have spent one.
func wantUnspent(t *testing.T, jobs []*client.Job) {
	t.Helper()
	again, snoozes := 0, 0
	for _, job := range jobs {
		again += min(1, max(0, job.Attempts-1))
		snoozes += job.Snoozes
	}
	figure(t, "crowd_jobs_with_more_than_one_attempt", again)
	figure(t, "crowd_snoozes", snoozes)
	if limit := 100; again > limit {
		t.Errorf("%d jobs have spent an attempt on the outage, want at most the %d that may have probed", again, limit)
	}
}

// What the worker's gate is for: this is the same crowd under asynq's plain way, where a handler that cannot call returns
// an error and the task comes back 10 s later.
func TestBreakerBesidePlainReenqueue(t *testing.T) {
	needProcesses(t)
	rdb := asynq.RedisClientOpt{Addr: redistest.Start(t).Addr()}
	queue := asynq.NewClient(rdb)
	defer queue.Close()
	n := crowd()
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range n {
		group.Go(func() error {
			_, err := queue.Enqueue(asynq.NewTask("job", nil, asynq.TaskID(fmt.Sprint(i)), asynq.MaxRetry(1<<30)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var runs atomic.Int64
	refused := errors.New("the upstream takes no calls")
	server := asynq.NewServer(rdb, asynq.Config{
		Concurrency: 256, LogLevel: asynq.FatalLevel,
		IsFailure:      func(error) bool { return false },
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return 10 * time.Second },
	})
	if err := server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		runs.Add(1)
		return refused
	})); err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	redisLoad := store(t, rdb.Addr)
	over := long(3*time.Second, 20*time.Second)
	figure(t, "plain_reenqueue_jobs", n)
	figure(t, "plain_reenqueue_redis_commands_per_second", int(commandsPerSecond(t, redisLoad, over)))
	figure(t, "plain_reenqueue_useless_runs_per_minute", int(float64(runs.Load())*60/over.Seconds()))
}

// longOpenConfig has a breaker that stays open for longer than a fleet needs to be replaced.
const longOpenConfig = `
worker: {concurrency: 16, drain: 1s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 6s, max_open_for: 6s, ramp: 1s}
    policies:
      chat: {max_attempts: 1}
`

// All that is known of an open breaker is in Redis, and what is there ends by itself. The jobs that the dead workers
// held are put back when their leases show that nobody has them.
func TestBreakerOutlivesTheFleet(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{workers: fleetSize, config: longOpenConfig})
	s.open()
	jobs := s.submitAll(300, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	for len(s.workers) > 0 {
		s.kill(s.workers[0])
	}
	killed := time.Now()
	s.upstream.Up()
	s.startWorker().await(t, workerAddress)
	ended := s.waitAll(jobs, time.Minute)
	wantState(t, ended, client.StateSucceeded)
	for _, job := range ended {
		if n := countAttempts(job, lost); n > 0 || job.Attempts != 1 {
			t.Errorf("job %s was held by a worker that died, and it shows: %d attempts, want 1:\n%s", job.ID, job.Attempts, show(job))
		}
	}
	slices.SortFunc(ended, func(a, b *client.Job) int { return a.FinishedAt.Compare(b.FinishedAt) })
	figure(t, "fleet_killed_to_first_job", ended[0].FinishedAt.Sub(killed))
	figure(t, "fleet_killed_to_last_job", lastEnd(ended).Sub(killed))
}

// A queue that an operator has paused stays paused, whatever happens to the upstream; its neighbours go on.
func TestBreakerLeavesAnOperatorsPause(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{workers: fleetSize, config: longOpenConfig})
	operator := asynq.NewInspectorFromRedisClient(store(t, s.redis.Addr()))
	s.open()
	paused := upstreamName + ":high"
	if err := operator.PauseQueue(paused); err != nil {
		t.Fatalf("an operator must be able to pause while the breaker is open: %v", err)
	}
	held := chat("held", "")
	held.Priority = client.PriorityHigh
	job, other := s.submit(held), s.submit(chat("other", ""))
	s.upstream.Up()
	wantState(t, s.waitAll([]*client.Job{other}, 30*time.Second), client.StateSucceeded)
	pass(t, 2*time.Second)
	if info, err := operator.GetQueueInfo(paused); err != nil || !info.Paused {
		t.Errorf("the operator's pause is gone: %+v, %v", info, err)
	}
	wantState(t, []*client.Job{s.get(job.ID)}, client.StateQueued)
	if err := operator.UnpauseQueue(paused); err != nil {
		t.Fatal(err)
	}
	wantState(t, s.waitAll([]*client.Job{job}, 30*time.Second), client.StateSucceeded)
}
