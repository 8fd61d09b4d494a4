package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
	"github.com/ferry-queue/ferry/internal/tasks"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
	"github.com/ferry-queue/ferry/internal/worker"
)

func TestMain(m *testing.M) {
	redisclient.LogTo(slog.New(slog.DiscardHandler))
	m.Run()
}

// bundle is a worker of one test with its Redis and its upstream.
type bundle struct {
	*worker.Worker
	redis *redisserver.Server
	sim   *upstreamtest.Server
	queue *tasks.Queue
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	log := slog.New(slog.DiscardHandler)
	server, sim := redistest.Start(t), upstreamtest.Start(t, upstreamtest.Config{})
	rdb, err := redisclient.Open(server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	acks, err := redisclient.Open(server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = acks.Close() })
	w, err := worker.New(worker.Config{
		Upstreams: []worker.Upstream{{
			Config:  openai.Config{Name: "sim", BaseURL: sim.BaseURL(), Concurrency: 4},
			Breaker: breaker.Config{HardFailures: 3, OpenFor: time.Minute},
		}},
		Drain: time.Second, Version: "v1.2.3",
	}, rdb, acks, log)
	require.NoError(t, err)
	queue, err := tasks.NewQueue(rdb, tasks.Config{}, tasks.NewWatcher(rdb, log), log)
	require.NoError(t, err)
	return &bundle{Worker: w, redis: server, sim: sim, queue: queue}
}

// run starts the worker; stop ends it and returns what Run did.
func (b *bundle) run(t *testing.T) (stop func() error) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx, ln) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	b.until(t, 200, "ok")
	return stop
}

func (b *bundle) get(target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	b.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, http.NoBody))
	return w
}

type health struct {
	Status    string
	Version   string
	InFlight  int `json:"in_flight"`
	Upstreams map[string]string
}

func (b *bundle) health(t require.TestingT, target string) (int, health) {
	w := b.get(target)
	var h health
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &h))
	return w.Code, h
}

// until waits for an answer of /readyz.
func (b *bundle) until(t *testing.T, code int, status string) {
	t.Helper()
	require.Eventually(t, func() bool {
		c, h := b.health(t, "/readyz")
		return c == code && h.Status == status
	}, 10*time.Second, 5*time.Millisecond, "%d %s", code, status)
}

func (b *bundle) submit(t *testing.T) string {
	t.Helper()
	job, _, err := b.queue.Submit(t.Context(), tasks.Submission{
		Kind: openai.Chat, Upstream: "sim", Model: "m", Request: []byte(`{"model":"m","messages":[{"role":"user","content":"Hello"}]}`), Hash: "h",
	})
	require.NoError(t, err)
	return job.ID
}

func TestHealthFollowsTheWorkersLife(t *testing.T) {
	b := newBundle(t)
	code, h := b.health(t, "/readyz")
	require.Equal(t, 503, code)
	require.Equal(t, health{Status: "starting", Version: "v1.2.3", Upstreams: map[string]string{"sim": "closed"}}, h)
	code, _ = b.health(t, "/livez")
	require.Equal(t, 200, code, "it lives before it is ready")

	stop := b.run(t)
	for _, target := range []string{"/readyz", "/healthz", "/livez"} {
		code, h := b.health(t, target)
		require.Equal(t, 200, code)
		require.Equal(t, "ok", h.Status)
	}

	require.NoError(t, b.redis.Pause())
	b.until(t, 503, "redis does not answer")
	code, _ = b.health(t, "/livez")
	require.Equal(t, 200, code, "an outage of Redis is no reason to restart workers")
	require.NoError(t, b.redis.Resume())
	b.until(t, 200, "ok")

	require.NoError(t, stop())
	b.until(t, 503, "draining")
}

// A call in flight is seen, and a stop lets it finish.
func TestAStopLetsCallsFinish(t *testing.T) {
	b := newBundle(t)
	stop := b.run(t)
	b.sim.SetFaults(upstreamtest.Faults{Latency: 300 * time.Millisecond})
	id := b.submit(t)
	require.Eventually(t, func() bool { _, h := b.health(t, "/readyz"); return h.InFlight == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, stop())
	job, err := b.queue.Get(t.Context(), id, tasks.Full)
	require.NoError(t, err)
	require.Equal(t, tasks.Succeeded, job.State)
	require.EqualValues(t, 1, b.sim.Requests())
}

// An open breaker is shown and counted, and the worker stays ready: another one would find it open too.
func TestAnOpenBreakerIsShown(t *testing.T) {
	b := newBundle(t)
	require.Contains(t, b.get("/metrics").Body.String(), `ferry_breaker_state{state="closed",upstream="sim"} 1`, "from the start")
	b.run(t)
	b.sim.SetFaults(upstreamtest.MustParseFaults("500=1"))
	for range 4 {
		b.submit(t)
	}
	require.Eventually(t, func() bool {
		code, h := b.health(t, "/readyz")
		return code == 200 && h.Upstreams["sim"] == "open"
	}, 10*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		text := b.get("/metrics").Body.String()
		return strings.Contains(text, `ferry_breaker_state{state="open",upstream="sim"} 1`) &&
			strings.Contains(text, `ferry_breaker_changes_total{state="open",upstream="sim"} 1`)
	}, 5*time.Second, 5*time.Millisecond)
}

// A worker without a disk works; but not if it was told to use one.
func TestASpoolThatCannotBeOpened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	rdb, err := redisclient.Open("redis://127.0.0.1:1")
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	cfg := worker.Config{
		Upstreams: []worker.Upstream{{Config: openai.Config{Name: "a", BaseURL: "http://127.0.0.1:1/v1"}}},
		Spool:     worker.Spool{Dir: filepath.Join(file, "spool")},
	}
	_, err = worker.New(cfg, rdb, rdb, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "worker: spool: ")

	cfg.Spool.Optional = true
	var log bytes.Buffer
	_, err = worker.New(cfg, rdb, rdb, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	require.Contains(t, log.String(), "level=WARN")
	require.Equal(t, 1, strings.Count(log.String(), "worker.spool_dir"))
}

func TestNewRefusesABadConfiguration(t *testing.T) {
	good := openai.Config{Name: "a", BaseURL: "http://127.0.0.1:1/v1"}
	tests := []struct {
		name string
		up   []worker.Upstream
		want string
	}{
		{"no upstream", nil, "worker: no upstream is configured"},
		{"a bad upstream", []worker.Upstream{{Config: openai.Config{Name: "A"}}}, "upstream A: name:"},
		{"a bad breaker", []worker.Upstream{{Config: good, Breaker: breaker.Config{FailureRatio: 2}}}, "breaker.failure_ratio: 2"},
		{
			"a call longer than a task", []worker.Upstream{{Config: openai.Config{
				Name: "a", BaseURL: good.BaseURL, Policies: map[openai.Kind]httpx.Policy{openai.Generate: {Total: 3 * time.Hour}},
			}}}, "policies.generate.total: 3h0m0s",
		},
		{
			"a call without an end", []worker.Upstream{{Config: openai.Config{
				Name: "a", BaseURL: good.BaseURL, Policies: map[openai.Kind]httpx.Policy{openai.Chat: {Total: -1}},
			}}}, "policies.chat.total: -1ns",
		},
	}
	rdb, err := redisclient.Open("redis://127.0.0.1:1")
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := worker.New(worker.Config{Upstreams: tt.up}, rdb, rdb, slog.New(slog.DiscardHandler))
			require.ErrorContains(t, err, tt.want)
		})
	}
}
