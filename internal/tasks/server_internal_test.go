package tasks

import (
	"bytes"
	"context"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// serve runs a server for the queue's upstream until the test ends or stop is called.
func (b *bundle) serve(t testing.TB, up Upstream, drain time.Duration) (stop func()) {
	t.Helper()
	calls := NewCalls()
	s := NewServer(open1(t, b.server.URL()), ServerConfig{Upstream: "up", Concurrency: 8, Poll: 5 * time.Millisecond, Drain: drain},
		b.handler(up, calls), calls, discard())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func (b *bundle) ends(t testing.TB, id string, want State) *Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	job, err := b.Wait(ctx, id)
	require.NoError(t, err)
	require.Equal(t, want, job.State, "waiting on %q", job.WaitingOn)
	return job
}

func TestServerCarriesJobsOfEveryPriority(t *testing.T) {
	b := newBundle(t)
	b.serve(t, &upstream{answers: []answer{says(`{}`)}}, time.Second)
	for _, p := range Priorities() {
		b.ends(t, b.submit(t, func(s *Submission) { s.Priority = p }).ID, Succeeded)
	}
}

func TestServerRetriesAndSnoozes(t *testing.T) {
	b := newBundle(t)
	b.serve(t, &upstream{answers: []answer{fails(httpx.Transient, "http_500", true), fails(httpx.Refused, "breaker_open"), says(`{}`)}}, time.Second)
	job := b.ends(t, b.submit(t).ID, Succeeded)
	require.Equal(t, []int{2, 1, 1, 3}, []int{job.Attempts, job.Retries, job.Snoozes, job.Runs})
}

func TestServerDoesNotRunADelayedJobEarly(t *testing.T) {
	b := newBundle(t)
	b.serve(t, &upstream{answers: []answer{says(`{}`)}}, time.Second)
	runAt := time.Now().Add(1300 * time.Millisecond)
	job := b.ends(t, b.submit(t, func(s *Submission) { s.RunAt = runAt }).ID, Succeeded)
	require.False(t, job.StartedAt.Before(runAt.Truncate(time.Microsecond)), "due %s, started %s", runAt, job.StartedAt)
}

func TestServerDrains(t *testing.T) {
	b := newBundle(t)
	started := make(chan struct{}, 8)
	stop := b.serve(t, &upstream{answers: []answer{hangs(started)}}, 50*time.Millisecond)
	id := b.submit(t).ID
	<-started
	stop()
	require.Equal(t, Queued, b.must(t, id).State)
	b.serve(t, &upstream{answers: []answer{says(`{}`)}}, time.Second)
	job := b.ends(t, id, Succeeded)
	require.Zero(t, job.Crashes)
}

func TestOperatorRunsAFailedJobAgain(t *testing.T) {
	b := newBundle(t)
	b.serve(t, &upstream{answers: []answer{fails(httpx.Permanent, "http_400", true), says(`{}`)}}, time.Second)
	job := b.ends(t, b.submit(t).ID, Failed)
	inspect := asynq.NewInspectorFromRedisClient(b.rdb)
	eventually(t, 5*time.Second, "asynqmon shows the job among the archived", func() bool {
		info, err := inspect.GetTaskInfo(job.Queue(), job.ID)
		return err == nil && info.State == asynq.TaskStateArchived
	})
	require.NoError(t, inspect.RunTask(job.Queue(), job.ID))
	eventually(t, 10*time.Second, "the job runs again", func() bool { return b.must(t, job.ID).State == Succeeded })
	require.Len(t, b.must(t, job.ID).Ledger, 2, "the ledger goes on")
}

func TestRetryByRequest(t *testing.T) {
	b := newBundle(t)
	b.serve(t, &upstream{answers: []answer{fails(httpx.Permanent, "http_400", true), says(`{}`)}}, time.Second)
	job := b.ends(t, b.submit(t).ID, Failed)
	_, err := b.Queue.Retry(t.Context(), job.ID)
	require.NoError(t, err)
	b.ends(t, job.ID, Succeeded)
	require.NoError(t, b.Delete(t.Context(), job.ID))
}

// orphan leaves a job as a worker does that is killed in mid-run: taken from asynq, claimed, its lease
// running out.
func (b *bundle) orphan(t testing.TB, left time.Duration) *Job {
	t.Helper()
	job := b.submit(t)
	_, err := b.seize(t.Context(), job.ID)
	require.NoError(t, err)
	q := job.Queue()
	require.EqualValues(t, 1, b.rdb.LRem(t.Context(), asynqPending(q), 0, job.ID).Val())
	require.NoError(t, b.rdb.LPush(t.Context(), asynqActive(q), job.ID).Err())
	require.NoError(t, b.rdb.HSet(t.Context(), asynqTaskPrefix(q)+job.ID, "state", "active").Err())
	require.NoError(t, b.rdb.ZAdd(t.Context(), asynqLease(q), redis.Z{Score: float64(time.Now().Add(left).Unix()), Member: job.ID}).Err())
	return job
}

// renew moves the end of a task's lease, as asynq does for a worker that lives.
func (b *bundle) renew(t testing.TB, job *Job, left time.Duration) {
	t.Helper()
	ends := redis.Z{Score: float64(time.Now().Add(left).Unix()), Member: job.ID}
	require.NoError(t, b.rdb.ZAdd(t.Context(), asynqLease(job.Queue()), ends).Err())
}

func TestReaperPutsTheJobsOfADeadWorkerBack(t *testing.T) {
	// When a lease ends by the clock of the worker that wrote it says nothing: clocks differ and jump.
	for _, left := range []time.Duration{-time.Hour, 10 * time.Second, time.Hour} {
		b := newBundle(t)
		care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
		dead, alive := b.orphan(t, left), b.orphan(t, left)
		rounds := func(n int) {
			for range n {
				require.NoError(t, care.reap(t.Context(), time.Now()))
			}
		}
		rounds(1)
		b.renew(t, alive, left+5*time.Second)
		rounds(deadRounds - 1)
		require.Empty(t, b.rdb.LRange(t.Context(), asynqPending(dead.Queue()), 0, -1).Val(), "not yet")
		rounds(1)
		require.Equal(t, []string{dead.ID}, b.rdb.LRange(t.Context(), asynqPending(dead.Queue()), 0, -1).Val())
		require.Equal(t, []string{alive.ID}, b.rdb.LRange(t.Context(), asynqActive(alive.Queue()), 0, -1).Val())

		b.serve(t, &upstream{answers: []answer{says(`{}`)}}, time.Second)
		job := b.ends(t, dead.ID, Succeeded)
		require.Equal(t, 1, job.Attempts, "the crash spent no attempt")
		require.Equal(t, "worker_lost", job.Ledger[0].Reason)
	}
}

func TestReaperRemovesGhosts(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	job := b.orphan(t, 0)
	require.NoError(t, b.rdb.Del(t.Context(), asynqTaskPrefix(job.Queue())+job.ID).Err())
	for range 1 + deadRounds {
		require.NoError(t, care.reap(t.Context(), time.Now()))
	}
	require.Zero(t, b.rdb.Exists(t.Context(), asynqLease(job.Queue()), asynqActive(job.Queue()), asynqPending(job.Queue())).Val())
}

func TestReaperDoesNotCountAnOutage(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	job := b.orphan(t, 0)
	pending := func() int64 { return b.rdb.LLen(t.Context(), asynqPending(job.Queue())).Val() }
	rounds := func(n int) {
		for range n {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			care.round(ctx, time.Now(), false)
			cancel()
		}
	}
	for range deadRounds {
		require.NoError(t, care.reap(t.Context(), time.Now()))
	}
	require.NoError(t, b.server.Stop(context.Background()))
	rounds(2 * deadRounds)
	require.NoError(t, b.server.Restart(context.Background()))
	eventually(t, 5*time.Second, "the client has noticed", func() bool { return b.rdb.Ping(t.Context()).Err() == nil })
	require.Zero(t, pending())
	require.NoError(t, care.reap(t.Context(), time.Now()))
	require.EqualValues(t, 1, pending(), "nor is what was seen before it forgotten: outages may follow each other")
}

func TestArchivesAreKeptShort(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	b.serve(t, &upstream{answers: []answer{fails(httpx.Permanent, "http_400", true)}}, time.Second)
	oldest := b.ends(t, b.submit(t).ID, Failed)
	archived, task := asynqArchived(oldest.Queue()), asynqTaskPrefix(oldest.Queue())
	eventually(t, 5*time.Second, "its task is archived", func() bool { return b.rdb.ZCard(t.Context(), archived).Val() == 1 })
	fill := make([]redis.Z, archiveKeep+archiveBatch)
	for i := range fill {
		fill[i] = redis.Z{Score: float64(time.Now().Unix() + 1), Member: strconv.Itoa(i)}
	}
	require.NoError(t, b.rdb.ZAdd(t.Context(), archived, fill...).Err())
	require.NoError(t, care.prune(t.Context(), time.Now()))
	require.EqualValues(t, archiveKeep, b.rdb.ZCard(t.Context(), archived).Val())
	require.Zero(t, b.rdb.Exists(t.Context(), task+oldest.ID).Val(), "the oldest went first, hash and all")

	_, err := b.Queue.Retry(t.Context(), oldest.ID)
	require.NoError(t, err, "what asynqmon can no longer show is still there to be retried")
}

func TestOneCaretakerLeads(t *testing.T) {
	b := newBundle(t)
	first, second := NewCaretaker(b.Queue, nil, held(""), discard()), NewCaretaker(b.Queue, nil, held(""), discard())
	job := b.submit(t, func(s *Submission) { s.ExpiresIn = time.Second })
	first.round(t.Context(), time.Now(), false)
	second.round(t.Context(), time.Now().Add(time.Minute), false)
	require.Equal(t, Queued, b.must(t, job.ID).State, "the second has no lead")
	first.resign()
	second.round(t.Context(), time.Now().Add(time.Minute), false)
	require.Equal(t, Expired, b.must(t, job.ID).State)
}

func TestReconcilerGivesALostJobATask(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	up := &upstream{answers: []answer{says(`{}`)}}
	lost := b.newJob(Submission{Kind: "chat", Upstream: "up", Request: []byte("{}")})
	_, _, err := b.create(t.Context(), lost, "h")
	require.NoError(t, err)
	var others []string
	for range reconcileBatch + 20 {
		others = append(others, b.submit(t).ID)
	}
	b.serve(t, up, time.Second)
	for _, id := range others {
		b.ends(t, id, Succeeded)
	}
	require.Equal(t, Queued, b.must(t, lost.ID).State)
	require.NoError(t, care.reconcile(t.Context(), time.Now()), "too young")
	require.Equal(t, Queued, b.must(t, lost.ID).State)
	require.NoError(t, care.reconcile(t.Context(), time.Now().Add(2*reconcileAge)))
	b.ends(t, lost.ID, Succeeded)
	require.Equal(t, len(others)+1, up.count())
}

func TestReconcilerWalksAllOpenJobs(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	const n = 2*reconcileBatch + 50
	for range n {
		_, _, err := b.create(t.Context(), b.newJob(Submission{Kind: "chat", Upstream: "up", Request: []byte("{}")}), "h")
		require.NoError(t, err)
	}
	for range 3 {
		require.NoError(t, care.reconcile(t.Context(), time.Now().Add(2*reconcileAge)))
	}
	require.EqualValues(t, n, b.rdb.LLen(t.Context(), asynqPending("up:default")).Val())
}

// TestAsynqKeys pins what asynqkeys.go and the facts behind this package assume about asynq. If it fails
// after an upgrade, read asynq's internal/rdb anew before changing it.
func TestAsynqKeys(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	require.True(t, ok)
	for _, dep := range info.Deps {
		if dep.Path == "github.com/hibiken/asynq" {
			require.Equal(t, "v0.26.0", dep.Version, "a new asynq: check the keys and the scripts")
		}
	}
	b := newBundle(t)
	job := b.submit(t)
	q := job.Queue()
	require.Equal(t, []string{job.ID}, b.rdb.LRange(t.Context(), asynqPending(q), 0, -1).Val())
	hash := b.rdb.HGetAll(t.Context(), asynqTaskPrefix(q)+job.ID).Val()
	require.Equal(t, "pending", hash["state"])
	require.NotEmpty(t, hash["msg"])

	started := make(chan struct{}, 1)
	stop := b.serve(t, &upstream{answers: []answer{hangs(started)}}, time.Millisecond)
	<-started
	require.Equal(t, []string{job.ID}, b.rdb.LRange(t.Context(), asynqActive(q), 0, -1).Val())
	lease := b.rdb.ZScore(t.Context(), asynqLease(q), job.ID).Val()
	require.InDelta(t, time.Now().Add(30*time.Second).Unix(), lease, 2, "a lease is 30 s, in whole seconds")
	require.Equal(t, "active", b.rdb.HGet(t.Context(), asynqTaskPrefix(q)+job.ID, "state").Val())
	stop()

	_, err := b.client.Enqueue(asynq.NewTask(taskType, nil), asynq.TaskID(job.ID), asynq.Queue(q))
	require.ErrorIs(t, err, asynq.ErrTaskIDConflict, "the task ID is what makes enqueueing safe to repeat")
}

func TestAsynqIsQuietWhileRedisIsAway(t *testing.T) {
	var b bytes.Buffer
	away := false
	l := asynqLog{log: slog.New(slog.NewTextHandler(&b, nil)), quiet: func() bool { return away }}
	l.Error("Dequeue error: EOF")
	l.Warn("Retry exhausted for task id=7")
	l.Info("Starting processing")
	require.Equal(t, 1, strings.Count(b.String(), "\n"), b.String())
	away = true
	l.Error("Dequeue error: EOF")
	l.Warn("Could not push task")
	require.Equal(t, 1, strings.Count(b.String(), "\n"), b.String())
}
