package tasks

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// bundle is a queue on a Redis of its own.
type bundle struct {
	*Queue
	server  *redisserver.Server
	rdb     redis.UniversalClient
	watcher *Watcher
}

func newBundle(t testing.TB) *bundle {
	t.Helper()
	server := redistest.Start(t)
	b := &bundle{server: server, rdb: open1(t, server.URL())}
	b.watcher = NewWatcher(b.rdb, discard())
	var err error
	b.Queue, err = NewQueue(b.rdb, Config{}, b.watcher, discard())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.watcher.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return b
}

func open1(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	rdb, err := redisclient.Open(url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

const chatBody = `{"model":"gpt-4o-mini",  "messages":[{"role":"user","content":"Hi \u00e9"}],"x_unknown":1e3}`

func (b *bundle) submit(t testing.TB, change ...func(*Submission)) *Job {
	t.Helper()
	sub := Submission{Kind: openai.Chat, Upstream: "up", Model: "gpt-4o-mini", Request: []byte(chatBody), Hash: "h"}
	for _, c := range change {
		c(&sub)
	}
	job, created, err := b.Submit(t.Context(), sub)
	require.NoError(t, err)
	require.True(t, created)
	return job
}

func (b *bundle) must(t testing.TB, id string) *Job {
	t.Helper()
	job, err := b.Get(t.Context(), id, WithRequest)
	require.NoError(t, err)
	return job
}

// in asserts that a job is in the index of its state, in no other, and due once.
func (b *bundle) in(t testing.TB, id string, want State) {
	t.Helper()
	part := shard(id)
	for _, s := range States() {
		err := b.rdb.ZScore(t.Context(), stateKey(part, s), id).Err()
		if s == want {
			require.NoError(t, err, "missing in %s", s)
		} else {
			require.ErrorIs(t, err, redis.Nil, "still in %s", s)
		}
	}
	require.NoError(t, b.rdb.ZScore(t.Context(), dueKey(part), id).Err())
}

// upstream is a script of outcomes: the n-th call gets the n-th, the last one repeats.
type upstream struct {
	mu      sync.Mutex
	answers []func(context.Context, openai.Call) (*httpx.Response, error)
	calls   []openai.Call
}

func (u *upstream) Do(ctx context.Context, call openai.Call) (*httpx.Response, error) {
	u.mu.Lock()
	u.calls = append(u.calls, call)
	answer := u.answers[min(len(u.calls), len(u.answers))-1]
	u.mu.Unlock()
	return answer(ctx, call)
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.calls)
}

type answer = func(context.Context, openai.Call) (*httpx.Response, error)

func says(body string) answer {
	return func(context.Context, openai.Call) (*httpx.Response, error) {
		return &httpx.Response{Status: 200, Body: []byte(body), Attempts: []httpx.Attempt{
			{Start: time.Now(), Duration: time.Millisecond, Status: 200, Class: httpx.OK, Reason: "ok", Sent: true},
		}}, nil
	}
}

func fails(class httpx.Class, reason string, sent ...bool) answer {
	return func(context.Context, openai.Call) (*httpx.Response, error) {
		e := &httpx.Error{Class: class, Reason: reason}
		for _, s := range sent {
			e.Attempts = append(e.Attempts, httpx.Attempt{Start: time.Now(), Class: class, Reason: reason, Sent: s})
		}
		return nil, e
	}
}

// hangs answers when its context ends, as a call does.
func hangs(started chan<- struct{}) answer {
	return func(ctx context.Context, _ openai.Call) (*httpx.Response, error) {
		started <- struct{}{}
		<-ctx.Done()
		if errors.Is(context.Cause(ctx), context.Canceled) {
			return nil, &httpx.Error{Class: httpx.Canceled, Reason: "canceled", Attempts: []httpx.Attempt{{Class: httpx.Canceled, Reason: "canceled", Sent: true, OutcomeUnknown: true}}}
		}
		return nil, &httpx.Error{Class: httpx.Transient, Reason: "timeout_total"}
	}
}

func (b *bundle) handler(up Upstream, calls *Calls, hooks ...Hooks) *Handler {
	cfg := HandlerConfig{Queue: b.Queue, Upstream: up, Concurrency: 8, Backoff: httpx.Backoff{Base: time.Millisecond, Max: time.Millisecond, Multiplier: 1}, Calls: calls, Fleet: NewFleet(b.rdb), Log: discard()}
	if len(hooks) > 0 {
		cfg.Hooks = hooks[0]
	}
	return NewHandler(cfg)
}

// seize claims a job for a worker that takes whoever has it for lost. It does not say how it is called.
func (b *bundle) seize(ctx context.Context, id string) (*Job, error) {
	by := uuid.NewString()
	job, err := b.claim(ctx, id, by, 0)
	if held, ok := errors.AsType[*heldError](err); ok {
		job, err = b.claim(ctx, id, by, held.run)
	}
	return job, err
}

func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, within, 10*time.Millisecond, what)
}

// held is why a caretaker's upstreams are held back.
func held(reason string) func(string) string { return func(string) string { return reason } }
