package tasks

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// runOnce hands a job's task to a handler as asynq would.
func runOnce(t testing.TB, h *Handler, id string) error {
	t.Helper()
	return h.ProcessTask(t.Context(), asynq.NewTask(taskType, task{Version: specVersion, Job: id}.encode()))
}

func TestHandlerStoresTheAnswerAndCallsNobodyAgain(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{"id":"x", "big": 12345678901234567890}`)}}
	var ended []State
	h := b.handler(up, NewCalls(), Hooks{End: func(_ *Job, s State, _ string) { ended = append(ended, s) }})
	id := b.submit(t).ID
	require.NoError(t, runOnce(t, h, id))
	require.NoError(t, runOnce(t, h, id), "the task again, because its acknowledgement was lost")
	require.Equal(t, 1, up.count())
	require.Equal(t, []State{Succeeded}, ended)
	require.Equal(t, openai.Call{Kind: openai.Chat, Body: []byte(chatBody), IdempotencyKey: id, MaxAttempts: 25}, up.calls[0])

	job := b.must(t, id)
	require.Equal(t, Succeeded, job.State)
	require.Equal(t, `{"id":"x", "big": 12345678901234567890}`, string(job.Result), "byte for byte")
	require.Equal(t, 1, job.Attempts)
	require.Equal(t, httpx.OK, job.Ledger[0].Class)
}

func TestHandlerCarriesOutDecisions(t *testing.T) {
	tests := []struct {
		name     string
		answer   answer
		state    State
		attempts int
		check    func(*testing.T, *Job)
	}{
		{"permanent", fails(httpx.Permanent, "http_404", true), Failed, 1, func(t *testing.T, j *Job) { require.Equal(t, "http_404", j.Failure.Code) }},
		{"transient", fails(httpx.Transient, "http_500", true, true), Retrying, 2, func(t *testing.T, j *Job) {
			require.Equal(t, 1, j.Retries)
			require.Equal(t, "http_500", j.WaitingOn)
			require.False(t, j.RunAt.IsZero())
			require.Len(t, j.Ledger, 2)
		}},
		{"refused", fails(httpx.Refused, "breaker_open"), Snoozed, 0, func(t *testing.T, j *Job) {
			require.Equal(t, 1, j.Snoozes)
			require.Zero(t, j.Retries)
			require.Empty(t, j.Ledger)
		}},
		{"canceled", fails(httpx.Canceled, "canceled", true), Queued, 1, nil},
	}
	b := newBundle(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var waits []State
			h := b.handler(&upstream{answers: []answer{tt.answer}}, NewCalls(), Hooks{Wait: func(_ *Job, s State, _ string) { waits = append(waits, s) }})
			id := b.submit(t).ID
			err := runOnce(t, h, id)
			job := b.must(t, id)
			require.Equal(t, tt.state, job.State)
			require.Equal(t, tt.attempts, job.Attempts)
			b.in(t, id, tt.state)
			if tt.check != nil {
				tt.check(t, job)
			}
			if tt.state.Terminal() {
				require.ErrorIs(t, err, asynq.SkipRetry)
				require.Empty(t, waits)
				return
			}
			var back *comeBack
			require.ErrorAs(t, err, &back)
			require.Equal(t, []State{tt.state}, waits)
		})
	}
}

// refuses is a refusal with a hint.
func refuses(hint time.Duration) answer {
	return func(context.Context, openai.Call) (*httpx.Response, error) {
		return nil, &httpx.Error{Class: httpx.Refused, Reason: "breaker_open", Wait: hint}
	}
}

func TestShortRefusalsAreWaitedOutInPlace(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{refuses(time.Millisecond), fails(httpx.Transient, "http_500", true), refuses(time.Millisecond)}}
	up.answers[1] = func(context.Context, openai.Call) (*httpx.Response, error) { // an attempt, and then the breaker
		return nil, &httpx.Error{Class: httpx.Refused, Reason: "breaker_open", Wait: time.Millisecond, Attempts: []httpx.Attempt{{Class: httpx.Transient, Reason: "http_500", Sent: true}}}
	}
	up.answers = append(up.answers, says(`{}`))
	id := b.submit(t).ID
	require.NoError(t, runOnce(t, b.handler(up, NewCalls()), id))
	job := b.must(t, id)
	require.Equal(t, []int{4, 2, 0, 1}, []int{up.count(), job.Attempts, job.Snoozes, job.Runs})
	require.Equal(t, 24, up.calls[3].MaxAttempts, "the attempt before the refusal counts")
	require.Equal(t, []int{1, 2}, []int{job.Ledger[0].N, job.Ledger[1].N})
}

func TestLongRefusalsLeaveTheProcess(t *testing.T) {
	require.Zero(t, lingerWait(&httpx.Error{Class: httpx.Refused, Wait: lingerStep + 1}, func() float64 { return 0 }))
	require.Zero(t, lingerWait(&httpx.Error{Class: httpx.Transient, Wait: time.Millisecond}, func() float64 { return 0 }))
	require.Equal(t, 15*time.Millisecond, lingerWait(&httpx.Error{Class: httpx.Refused, Wait: 10 * time.Millisecond}, func() float64 { return 1 }))
}

func TestLingeringHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{upstream: &upstream{answers: []answer{refuses(time.Second)}}, log: discard()}
		start := time.Now()
		_, _, err := h.call(t.Context(), &Job{Spec: Spec{MaxAttempts: 1}})
		require.Equal(t, httpx.Refused, err.Class)
		require.LessOrEqual(t, time.Since(start), lingerFor)
		require.Greater(t, time.Since(start), lingerFor-2*time.Second)
	})
}

// door is a gate that a test opens.
type door chan struct{}

func (d door) Enter(ctx context.Context) (func(), error) {
	select {
	case <-d:
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestJobHeldAtTheGateIsNobodysYet(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{}`)}}
	h, d := b.handler(up, NewCalls()), make(door)
	h.gate = d
	canceled, kept := b.submit(t).ID, b.submit(t).ID
	results := make(chan error, 2)
	for _, id := range []string{canceled, kept} {
		go func() { results <- runOnce(t, h, id) }()
	}
	eventually(t, 5*time.Second, "both hold a place", func() bool { return len(h.slots) == 2 })
	require.Equal(t, Queued, b.must(t, kept).State)
	require.Zero(t, b.must(t, kept).Runs)
	_, err := b.Cancel(t.Context(), canceled)
	require.NoError(t, err)
	close(d)
	require.NoError(t, <-results)
	require.NoError(t, <-results)
	require.Equal(t, 1, up.count(), "the canceled job is not called for")
	require.Equal(t, Succeeded, b.must(t, kept).State)
}

func TestDrainDoesNotWaitForTheGate(t *testing.T) {
	b := newBundle(t)
	h := b.handler(&upstream{}, NewCalls())
	h.gate = make(door)
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- runOnce(t, h, id) }()
	eventually(t, 5*time.Second, "it holds a place", func() bool { return len(h.slots) == 1 })
	h.close()
	var back *comeBack
	require.ErrorAs(t, <-result, &back)
	require.Zero(t, back.delay)
	require.Zero(t, b.must(t, id).Runs)
}

func TestHandlerGivesUpWhenAttemptsAreSpent(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{fails(httpx.Transient, "http_500", true, true)}}
	h := b.handler(up, NewCalls())
	id := b.submit(t, func(s *Submission) { s.MaxAttempts = 5 }).ID
	for range 3 {
		require.Error(t, runOnce(t, h, id))
	}
	job := b.must(t, id)
	require.Equal(t, Failed, job.State)
	require.Equal(t, []int{5, 3, 1}, []int{up.calls[0].MaxAttempts, up.calls[1].MaxAttempts, up.calls[2].MaxAttempts}, "a call may make what is left")
	require.Len(t, job.Ledger, 6)
	require.Equal(t, []int{1, 6}, []int{job.Ledger[0].N, job.Ledger[5].N})
}

func TestHandlerEndsPoison(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{}`)}}
	id := b.submit(t).ID
	for range defaultMaxCrashes {
		_, err := b.seize(t.Context(), id)
		require.NoError(t, err)
	}
	require.ErrorIs(t, runOnce(t, b.handler(up, NewCalls()), id), asynq.SkipRetry)
	require.Equal(t, "job_crashes_worker", b.must(t, id).Failure.Code)
	require.Zero(t, up.count())
}

// boom panics instead of making a call.
func boom(context.Context, openai.Call) (*httpx.Response, error) { panic("boom: the prompt") }

func TestHandlerSurvivesAPanic(t *testing.T) {
	b := newBundle(t)
	h := b.handler(&upstream{answers: []answer{boom, says(`{}`)}}, NewCalls())
	id := b.submit(t).ID
	var back *comeBack
	require.ErrorAs(t, runOnce(t, h, id), &back)
	job := b.must(t, id)
	require.Equal(t, []any{Retrying, panicReason, 1, 1}, []any{job.State, job.WaitingOn, job.Crashes, job.Runs})
	require.Equal(t, Attempt{Run: 1, Class: httpx.Transient, Reason: panicReason, Unknown: true}, job.Ledger[0])
	require.Empty(t, h.slots, "its place is free")

	require.NoError(t, runOnce(t, h, id))
	job = b.must(t, id)
	require.Equal(t, []any{Succeeded, 1, 1}, []any{job.State, job.Crashes, job.Attempts})
}

// Panics and lost workers are counted together, and a run that comes to its end begins the count anew.
func TestJobThatCrashesItsRunsFails(t *testing.T) {
	b := newBundle(t)
	h := b.handler(&upstream{answers: []answer{fails(httpx.Transient, "http_500", true), boom}}, NewCalls())
	id := b.submit(t).ID
	lost := func() {
		_, err := b.seize(t.Context(), id)
		require.NoError(t, err)
	}
	lost()
	var back *comeBack
	require.ErrorAs(t, runOnce(t, h, id), &back, "it ends: the count is 0 again")
	lost()
	for range defaultMaxCrashes - 2 {
		require.ErrorAs(t, runOnce(t, h, id), &back)
	}
	require.ErrorIs(t, runOnce(t, h, id), asynq.SkipRetry)
	job := b.must(t, id)
	require.Equal(t, Failed, job.State)
	require.Equal(t, "job_crashes_worker", job.Failure.Code)
	require.Contains(t, job.Failure.Message, "5 runs of this job in a row")
	require.NotContains(t, b.rdb.HGetAll(t.Context(), jobKey(id)).String(), "boom", "what a panic says stays in the log")
}

func TestHandlerLeavesNewerJobsToNewerWorkers(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{}`)}}
	job := b.newJob(Submission{Kind: "vision", Upstream: "up", Request: []byte("{}")})
	job.Version = specVersion + 1
	_, _, err := b.create(t.Context(), job, "h")
	require.NoError(t, err)
	var back *comeBack
	require.ErrorAs(t, runOnce(t, b.handler(up, NewCalls()), job.ID), &back)
	require.Equal(t, newerDelay, back.delay)
	require.Equal(t, Queued, b.must(t, job.ID).State)
	require.Zero(t, up.count())
}

func TestHandlerRefusesForeignTasks(t *testing.T) {
	b := newBundle(t)
	h := b.handler(&upstream{}, NewCalls())
	for _, payload := range []string{"", "null", "{", `{"job":""}`, `{"job":7}`} {
		require.ErrorIs(t, h.ProcessTask(t.Context(), asynq.NewTask("other", []byte(payload))), asynq.SkipRetry, payload)
	}
	require.NoError(t, runOnce(t, h, newID()), "a job that is gone needs no run")
}

func TestCancelStopsARunningCall(t *testing.T) {
	b := newBundle(t)
	calls := NewCalls()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = calls.Listen(ctx, b.rdb) })
	defer func() { stop(); wg.Wait() }()
	started := make(chan struct{}, 1)
	h := b.handler(&upstream{answers: []answer{hangs(started)}}, calls)
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- runOnce(t, h, id) }()
	<-started
	eventually(t, 5*time.Second, "the listener subscribes", func() bool {
		return b.rdb.PubSubNumSub(t.Context(), cancelChannel).Val()[cancelChannel] > 0
	})
	job, err := b.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, Canceled, job.State, "the record says so at once")
	select {
	case err := <-result:
		require.NoError(t, err, "asynq may forget the task")
	case <-time.After(5 * time.Second):
		t.Fatal("the call was not stopped")
	}
	require.Equal(t, Canceled, b.must(t, id).State)
	require.Zero(t, calls.Len())
}

func TestRetryWhileTheCanceledRunIsStillThere(t *testing.T) {
	b := newBundle(t)
	calls := NewCalls()
	started := make(chan struct{}, 1)
	h := b.handler(&upstream{answers: []answer{hangs(started)}}, calls)
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- runOnce(t, h, id) }()
	<-started
	_, err := b.Cancel(t.Context(), id)
	require.NoError(t, err)
	_, err = b.Queue.Retry(t.Context(), id)
	require.NoError(t, err)
	calls.Cancel(id)
	var back *comeBack
	require.ErrorAs(t, <-result, &back, "the task this run holds is the only one the job has")
	require.Equal(t, Queued, b.must(t, id).State)
}

func TestDrainPutsJobsBack(t *testing.T) {
	b := newBundle(t)
	calls := NewCalls()
	started := make(chan struct{}, 1)
	h := b.handler(&upstream{answers: []answer{hangs(started)}}, calls)
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- runOnce(t, h, id) }()
	<-started
	calls.Drain()
	var back *comeBack
	require.ErrorAs(t, <-result, &back)
	require.Zero(t, back.delay)
	job := b.must(t, id)
	require.Equal(t, Queued, job.State)
	require.Zero(t, job.Crashes)
	require.Zero(t, job.lost)

	h.close()
	require.ErrorAs(t, runOnce(t, h, id), &back, "a handler that is closed takes nothing")
}

func TestAnswerIsKeptOverAnOutageOfRedis(t *testing.T) {
	b := newBundle(t)
	down, up := make(chan struct{}), make(chan struct{})
	h := b.handler(&upstream{answers: []answer{func(ctx context.Context, c openai.Call) (*httpx.Response, error) {
		close(down)
		<-up
		return says(`{"paid":"for"}`)(ctx, c)
	}}}, NewCalls())
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- runOnce(t, h, id) }()
	<-down
	require.NoError(t, b.server.Stop(context.Background()))
	failed := make(chan struct{}, 100)
	b.rdb.AddHook(failures(failed))
	close(up)
	<-failed // a first try to store the answer
	require.NoError(t, b.server.Restart(context.Background()))
	require.NoError(t, <-result)
	require.Equal(t, `{"paid":"for"}`, string(b.must(t, id).Result))
}

// failures is a hook that tells of each command that failed.
type failures chan<- struct{}

func (f failures) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f failures) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (f failures) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil {
			select {
			case f <- struct{}{}:
			default:
			}
		}
		return err
	}
}
