package tasks

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/spool"
)

// outbox opens one on a directory, as a process does that starts.
func (b *bundle) outbox(t testing.TB, dir string, limit int64, hooks ...Hooks) *Outbox {
	t.Helper()
	s, err := spool.Open(dir, limit, discard())
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	cfg := OutboxConfig{Queue: b.Queue, Spool: s, Fleet: NewFleet(b.rdb), Log: discard()}
	if len(hooks) > 0 {
		cfg.Hooks = hooks[0]
	}
	return NewOutbox(cfg)
}

const (
	roomy    = 1 << 20
	paidBody = `{"paid":"for",  "big":12345678901234567890}`
)

// answerWithoutRedis is a run whose call is answered once Redis has gone away.
func (b *bundle) answerWithoutRedis(t *testing.T, h *Handler, id string, away func() error) error {
	t.Helper()
	h.upstream = &upstream{answers: []answer{func(ctx context.Context, _ openai.Call) (*httpx.Response, error) {
		if err := away(); err != nil {
			return nil, err
		}
		return says(paidBody)(ctx, openai.Call{})
	}}}
	return runOnce(t, h, id)
}

func TestAnswerOutlivesItsProcessWhileRedisIsAway(t *testing.T) {
	b, dir := newBundle(t), t.TempDir()
	first := b.outbox(t, dir, roomy)
	h := b.handler(nil, NewCalls())
	h.outbox = first
	id := b.submit(t).ID
	var back *comeBack
	require.ErrorAs(t, b.answerWithoutRedis(t, h, id, b.server.Kill), &back)
	require.Equal(t, comeBack{heldDelay, Running, "answer_on_disk"}, *back)
	require.Empty(t, h.slots, "nothing waits in memory")
	require.Error(t, first.Deliver(t.Context()), "Redis is away")
	require.Equal(t, 1, first.Stats().Entries)
	require.NoError(t, first.spool.Close())

	require.NoError(t, b.server.Restart(t.Context()))
	var ended []string
	second := b.outbox(t, dir, roomy, Hooks{End: func(job *Job, s State, _ string) {
		ended = append(ended, job.ID+" "+job.Upstream+" "+string(job.Kind)+" "+string(s))
	}})
	require.NoError(t, second.Deliver(t.Context()))
	job := b.must(t, id)
	require.Equal(t, Succeeded, job.State)
	require.Equal(t, paidBody, string(job.Result), "byte for byte")
	require.Equal(t, []int{1, 1, 0}, []int{job.Attempts, len(job.Ledger), job.Crashes})
	require.Equal(t, []string{id + " up chat succeeded"}, ended)
	require.Equal(t, OutboxStats{Delivered: 1}, second.Stats())

	up := &upstream{answers: []answer{boom}}
	require.NoError(t, runOnce(t, b.handler(up, NewCalls()), id), "asynq brings the task again")
	require.Zero(t, up.count())
}

// A Redis that is silent is as good as one that is gone.
func TestAnswerDoesNotWaitLongForASilentRedis(t *testing.T) {
	b := newBundle(t)
	h := b.handler(nil, NewCalls())
	h.outbox = b.outbox(t, t.TempDir(), roomy)
	id := b.submit(t).ID
	start := time.Now()
	var back *comeBack
	require.ErrorAs(t, b.answerWithoutRedis(t, h, id, b.server.Pause), &back)
	require.Less(t, time.Since(start), 3*outboxAfter)
	require.Equal(t, 1, h.outbox.Stats().Entries)
	require.NoError(t, b.server.Resume())
	require.NoError(t, h.outbox.Deliver(t.Context()))
	require.Equal(t, paidBody, string(b.must(t, id).Result))
}

// While a living worker has a job's answer, nobody else makes the call.
func TestJobWhoseAnswerIsOnDiskIsNotRunAgain(t *testing.T) {
	b := newBundle(t)
	h := b.handler(nil, NewCalls())
	h.outbox = b.outbox(t, t.TempDir(), roomy)
	h.outbox.fleet = h.fleet
	id := b.submit(t).ID
	var back *comeBack
	require.ErrorAs(t, b.answerWithoutRedis(t, h, id, b.server.Kill), &back)
	require.NoError(t, b.server.Restart(t.Context()))

	up := &upstream{answers: []answer{boom}}
	other := b.handler(up, NewCalls())
	for _, fleet := range []*Fleet{h.fleet, other.fleet} {
		fleet.round(t.Context())
		fleet.round(t.Context())
	}
	for _, h := range []*Handler{h, other} {
		h.upstream = up
		require.ErrorAs(t, runOnce(t, h, id), &back)
		require.Equal(t, "another_run_has_it", back.reason)
	}
	require.Zero(t, up.count())
	require.NoError(t, h.outbox.Deliver(t.Context()))
	require.NoError(t, runOnce(t, other, id))
	require.Equal(t, []any{Succeeded, 1}, []any{b.must(t, id).State, b.must(t, id).Runs})
	require.Empty(t, h.fleet.jobs, "and the fleet is told")
}

// onDisk leaves a job as a worker does that has an answer and no Redis: claimed, the answer of its run on disk.
func (b *bundle) onDisk(t *testing.T, o *Outbox) string {
	t.Helper()
	id := b.submit(t).ID
	job, err := b.seize(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, o.put(t.Context(), b.letter(job)))
	return id
}

func (b *bundle) letter(job *Job) *letter {
	return &letter{
		Version: letterVersion, Job: job.ID, Kind: job.Kind, Upstream: job.Upstream, CreatedAt: job.CreatedAt, Retention: job.Retention,
		Run: job.Runs, Sent: 1, Ledger: []Attempt{{N: 1, Run: job.Runs, Class: httpx.OK, Sent: true}}, result: b.codec.pack(job.ID, fieldResult, []byte(paidBody)),
	}
}

func TestLaterRunFindsTheAnswerOnDisk(t *testing.T) {
	b := newBundle(t)
	o := b.outbox(t, t.TempDir(), roomy)
	id := b.onDisk(t, o)
	up := &upstream{answers: []answer{boom}}
	h := b.handler(up, NewCalls())
	h.outbox = o
	require.NoError(t, runOnce(t, h, id))
	require.Zero(t, up.count(), "the call is not made again")
	job := b.must(t, id)
	require.Equal(t, []any{Succeeded, paidBody, 2, 1}, []any{job.State, string(job.Result), job.Runs, job.Attempts})
	require.Zero(t, o.Stats().Entries)
}

func TestAnswerWaitsWhileAnotherRunHasTheJob(t *testing.T) {
	for _, next := range []State{Queued, Snoozed, Retrying} {
		t.Run(string(next), func(t *testing.T) {
			b := newBundle(t)
			o := b.outbox(t, t.TempDir(), roomy)
			id := b.onDisk(t, o)
			other, err := b.seize(t.Context(), id)
			require.NoError(t, err)
			require.NoError(t, o.Deliver(t.Context()))
			require.Equal(t, Running, b.must(t, id).State, "another run has it")
			require.Equal(t, OutboxStats{Entries: 1, Bytes: o.Stats().Bytes}, o.Stats())

			_, err = b.apply(t.Context(), id, b.handler(nil, NewCalls()).moveFor(other, decision{state: next, delay: time.Hour, reason: "why"}, nil, 0))
			require.NoError(t, err)
			require.NoError(t, o.Deliver(t.Context()))
			job := b.must(t, id)
			require.Equal(t, []any{Succeeded, paidBody, ""}, []any{job.State, string(job.Result), job.WaitingOn})
			require.True(t, job.RunAt.IsZero())
			b.in(t, id, Succeeded)
			require.Zero(t, o.Stats().Entries)
		})
	}
}

func TestAnswerOfAnEndedJobIsDropped(t *testing.T) {
	b := newBundle(t)
	o := b.outbox(t, t.TempDir(), roomy)
	canceled, deleted := b.onDisk(t, o), b.onDisk(t, o)
	for _, id := range []string{canceled, deleted} {
		_, err := b.Cancel(t.Context(), id)
		require.NoError(t, err)
	}
	require.NoError(t, b.Delete(t.Context(), deleted))
	require.NoError(t, o.Deliver(t.Context()))
	require.Equal(t, OutboxStats{Refused: 2}, o.Stats())
	require.Equal(t, Canceled, b.must(t, canceled).State)
	require.Nil(t, b.must(t, canceled).Result)
}

func TestAnswerThatTheDiskRefusesWaitsInMemory(t *testing.T) {
	b := newBundle(t)
	h := b.handler(nil, NewCalls())
	h.outbox = b.outbox(t, t.TempDir(), 1)
	id := b.submit(t).ID
	result := make(chan error, 1)
	go func() { result <- b.answerWithoutRedis(t, h, id, b.server.Kill) }()
	eventually(t, 20*time.Second, "the disk is full", func() bool { return h.outbox.Stats().Failed == 1 })
	require.Len(t, h.slots, 1, "it holds its place")
	require.NoError(t, b.server.Restart(t.Context()))
	require.NoError(t, <-result)
	require.Equal(t, paidBody, string(b.must(t, id).Result))
}

func TestOutboxDeliversOnceRedisIsBack(t *testing.T) {
	b := newBundle(t)
	o := b.outbox(t, t.TempDir(), roomy)
	var ids []string
	for range 20 {
		ids = append(ids, b.onDisk(t, o))
	}
	require.NoError(t, b.server.Kill())
	failed := make(chan struct{}, 1)
	b.rdb.AddHook(failures(failed))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = o.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	<-failed
	require.NoError(t, b.server.Restart(t.Context()))
	back := time.Now()
	eventually(t, 20*time.Second, "all are delivered", func() bool { return o.Stats().Delivered == 20 })
	t.Logf("20 answers delivered within %s", time.Since(back))
	for _, id := range ids {
		require.Equal(t, Succeeded, b.must(t, id).State)
	}
	late := b.onDisk(t, o)
	eventually(t, time.Second, "a new one is not left for the next round", func() bool { return b.must(t, late).State == Succeeded })
}

// What cannot be read as an answer is no obstacle for the others.
func TestOutboxSetsGarbageAside(t *testing.T) {
	b := newBundle(t)
	o := b.outbox(t, t.TempDir(), roomy)
	job := newID()
	require.NoError(t, o.spool.Put(job, []byte("no line")))
	require.NoError(t, o.spool.Put(job, []byte("{}\n?")))
	require.NoError(t, o.spool.Put(job, []byte(`{"v":2,"job":"`+job+`","run":1}`+"\n?")))
	id := b.onDisk(t, o)
	require.NoError(t, o.Deliver(t.Context()))
	require.Equal(t, Succeeded, b.must(t, id).State)
	require.Equal(t, 1, o.Stats().Entries, "a newer version will come by for its own")
}

func TestLetterIsReadAsItWasWritten(t *testing.T) {
	b := newBundle(t)
	want := b.letter(b.submit(t))
	want.Run, want.Snoozes, want.result = 3, 2, []byte("\n\x00{\n")
	file, err := want.encode()
	require.NoError(t, err)
	got, err := decodeLetter(file)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func FuzzDecodeLetter(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"v":1,"job":"job_00000000000000000000000000000000","run":1,"retention":-1,"ledger":[{"class":"ok"}]}` + "\nx"))
	f.Fuzz(func(t *testing.T, file []byte) {
		l, err := decodeLetter(file)
		if err != nil {
			return
		}
		again, err := l.encode()
		if err != nil {
			t.Fatal(err)
		}
		if l2, err := decodeLetter(again); err != nil || l2.Job != l.Job || string(l2.result) != string(l.result) {
			t.Fatalf("%+v is read again as %+v, %v", l, l2, err)
		}
	})
}

// noRedis is a hook that fails every command, and does not dial.
type noRedis struct{}

func (noRedis) DialHook(next redis.DialHook) redis.DialHook { return next }

func (noRedis) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (noRedis) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return io.ErrUnexpectedEOF }
}

// Nobody has paid for a retry: a worker that goes away does not wait five minutes to write it down.
func TestDrainGivesOutcomesUpSoon(t *testing.T) {
	for name, draining := range map[string]bool{"a worker that stays goes on trying": false, "one that drains does not": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rdb := redis.NewClient(&redis.Options{MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
				rdb.AddHook(noRedis{})
				store, err := NewStore(rdb, nil)
				require.NoError(t, err)
				h := NewHandler(HandlerConfig{Queue: &Queue{Store: store}, Calls: NewCalls(), Log: discard(), Concurrency: 1})
				start := time.Now()
				if draining {
					time.AfterFunc(time.Minute, h.close)
					start = start.Add(time.Minute)
				}
				var back *comeBack
				require.ErrorAs(t, h.finish(&Job{ID: newID()}, decision{state: Queued}, nil, 0), &back)
				want := persistLimit
				if draining {
					want = persistDrain
				}
				require.WithinDuration(t, start.Add(want), time.Now(), time.Second)
				require.NoError(t, rdb.Close())
			})
		})
	}
}

// full is a Redis that has used up its memory.
func full(t *testing.T, b *bundle) {
	t.Helper()
	info := b.rdb.Info(t.Context(), "memory").Val()
	_, used, _ := strings.Cut(info, "used_memory:")
	used, _, _ = strings.Cut(used, "\r")
	limit, err := strconv.Atoi(used)
	require.NoError(t, err)
	require.NoError(t, b.rdb.ConfigSet(t.Context(), "maxmemory", strconv.Itoa(limit/2)).Err())
}

func TestFullRedisTakesNoJobsAndEndsThoseItHas(t *testing.T) {
	b := newBundle(t)
	running, lost, waits := b.submit(t), b.submit(t), b.submit(t)
	var runs []*Job
	for _, job := range []*Job{running, lost} {
		run, err := b.seize(t.Context(), job.ID)
		require.NoError(t, err)
		runs = append(runs, run)
	}
	full(t, b)
	_, _, err := b.Submit(t.Context(), Submission{Kind: "chat", Upstream: "up", Request: []byte(chatBody)})
	require.ErrorContains(t, err, "OOM")

	big := []byte(strings.Repeat("x", 100<<10))
	l := b.letter(runs[0])
	l.result = append([]byte{packedRaw}, big...)
	_, err = b.apply(t.Context(), running.ID, l.move(time.Now()))
	require.NoError(t, err, "an answer of 100 KB is stored")
	require.Equal(t, big, b.must(t, running.ID).Result)

	again, err := b.seize(t.Context(), lost.ID)
	require.NoError(t, err, "a job whose worker was lost can be claimed")
	_, err = b.seize(t.Context(), waits.ID)
	require.NoError(t, err, "and one that waits")
	_, err = b.apply(t.Context(), lost.ID, b.handler(nil, NewCalls()).moveFor(again, decision{state: Retrying, reason: "http_503"}, nil, 0))
	require.NoError(t, err, "and put back")
	_, err = b.Cancel(t.Context(), waits.ID)
	require.NoError(t, err, "and canceled")
	_, err = b.Queue.Retry(t.Context(), waits.ID)
	require.NoError(t, err)
	b.in(t, waits.ID, Queued)
}

func TestFullRedisIsSwept(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	ended, running, waits := b.submit(t), b.submit(t), b.submit(t)
	_, err := b.Cancel(t.Context(), ended.ID)
	require.NoError(t, err)
	_, err = b.seize(t.Context(), running.ID)
	require.NoError(t, err)
	full(t, b)
	care.round(t.Context(), time.Now().Add(25*time.Hour), false)
	_, err = b.Get(t.Context(), ended.ID, Summary)
	require.ErrorIs(t, err, ErrNotFound, "its retention is over, and its memory is free")
	require.Equal(t, Expired, b.must(t, waits.ID).State)
	b.in(t, waits.ID, Expired)
	require.Equal(t, Running, b.must(t, running.ID).State, "its run sees for itself")
}
