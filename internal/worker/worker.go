// Package worker puts a worker process together: for each upstream a client, a breaker and a server that
// takes its jobs, and beside them the fleet's caretaker.
//
// The idea: one upstream, one of everything. An upstream that hangs fills its own places, its own pool and
// its own queue, and nobody else's.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/spool"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// Config is how a worker works.
type Config struct {
	Upstreams []Upstream
	Jobs      tasks.Config
	Backoff   httpx.Backoff // between the runs of a job; default 2s to 5m
	Poll      time.Duration // how often an idle worker looks for a job; default 20ms
	Drain     time.Duration // how long calls may go on after a stop; default 30s
	Spool     Spool
	Version   string
	RedisAway func() bool // whether Redis is known to be away: asynq's complaints about it are then left out; nil: never
}

// Spool is where answers wait on disk while Redis does not take them.
type Spool struct {
	Dir      string // "": nowhere; they wait in memory alone
	Limit    int64  // bytes this process may keep there; default 1 GiB
	Optional bool   // a worker whose Dir cannot be used goes on without it
}

const defaultSpoolLimit = 1 << 30

// Upstream is one upstream and when not to call it. The breaker's Name is set.
type Upstream struct {
	openai.Config
	Breaker breaker.Config
}

// Validate joins every problem, each with its key. Zero fields count as their default.
func (u Upstream) Validate() error {
	u.Config = u.WithDefaults()
	u.Breaker.Name = u.Name
	errs := []error{u.Config.Validate()}
	for _, kind := range openai.Kinds() {
		if total := u.Policies[kind].Total; total <= 0 || total > tasks.MaxCall {
			errs = append(errs, fmt.Errorf("policies.%s.total: %s is not above 0s and at most %s", kind, total, tasks.MaxCall))
		}
	}
	if err := u.Breaker.Validate(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			errs = append(errs, errors.New("breaker."+strings.TrimPrefix(line, "breaker: ")))
		}
	}
	return errors.Join(errs...)
}

// Worker is a worker process.
type Worker struct {
	cfg     Config
	rdb     redis.UniversalClient
	acks    redis.UniversalClient // for asynq's servers alone; see tasks.NewServer
	log     *slog.Logger
	units   []*unit
	queue   *tasks.Queue
	calls   *tasks.Calls
	fleet   *tasks.Fleet
	outbox  *tasks.Outbox // nil: none
	care    *tasks.Caretaker
	metrics *metrics
	ready   chan struct{} // closed once jobs are taken
	gone    chan struct{} // closed once the worker drains
}

// unit is all that belongs to one upstream.
type unit struct {
	upstream *openai.Upstream
	breaker  *breaker.Shared
	server   *tasks.Server
}

// New returns a worker on two Redis clients: the second is for asynq's acknowledgements, see
// [tasks.NewServer]. It does not dial, and opens the spool.
func New(cfg Config, rdb, acks redis.UniversalClient, log *slog.Logger) (_ *Worker, err error) {
	if len(cfg.Upstreams) == 0 {
		return nil, errors.New("worker: no upstream is configured")
	}
	if cfg.Backoff == (httpx.Backoff{}) {
		cfg.Backoff = tasks.DefaultBackoff()
	}
	// A worker never waits for a job, so its queue's watcher is not run.
	queue, err := tasks.NewQueue(rdb, cfg.Jobs, tasks.NewWatcher(rdb, log), log)
	if err != nil {
		return nil, err
	}
	calls := tasks.NewCalls()
	w := &Worker{
		cfg: cfg, rdb: rdb, acks: acks, log: log, queue: queue, calls: calls, fleet: tasks.NewFleet(rdb), metrics: newMetrics(calls),
		ready: make(chan struct{}), gone: make(chan struct{}),
	}
	if w.outbox, err = w.openOutbox(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && w.outbox != nil {
			err = errors.Join(err, w.outbox.Close())
		}
	}()
	var names []string
	for _, u := range cfg.Upstreams {
		unit, err := w.unit(u)
		if err != nil {
			return nil, err
		}
		w.units = append(w.units, unit)
		names = append(names, unit.upstream.Name())
	}
	w.care = tasks.NewCaretaker(queue, names, w.held, log)
	return w, nil
}

// openOutbox returns nil without an error where there is to be none.
func (w *Worker) openOutbox() (*tasks.Outbox, error) {
	cfg := w.cfg.Spool
	if cfg.Dir == "" {
		return nil, nil
	}
	s, err := spool.Open(cfg.Dir, cmp.Or(cfg.Limit, defaultSpoolLimit), w.log)
	if err != nil && cfg.Optional {
		w.log.Warn("answers wait in memory alone while Redis is away: set worker.spool_dir to a directory that can be written", slog.Any("error", err))
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	outbox := tasks.NewOutbox(tasks.OutboxConfig{Queue: w.queue, Spool: s, Fleet: w.fleet, Hooks: w.metrics.hooks(), Log: w.log})
	w.metrics.spool(outbox.Stats)
	return outbox, nil
}

func (w *Worker) unit(u Upstream) (*unit, error) {
	u.Config = u.WithDefaults()
	if err := u.Validate(); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
	}
	u.Breaker.Name, u.Breaker.Logger = u.Name, w.log
	var g *gate
	u.Breaker.OnChange = func(c breaker.Change) {
		w.metrics.breakerChanged(u.Name, c)
		g.notify()
	}
	br, err := breaker.New(w.rdb, u.Breaker)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
	}
	g = newGate(br.Status, u.Breaker.WithDefaults().Probes)
	w.metrics.breakerIs(u.Name, breaker.Closed)
	up, err := openai.New(u.Config, br, w.clientHooks(u.Name))
	if err != nil {
		return nil, err
	}
	w.metrics.pools.stats[u.Name] = up.Stats
	handler := tasks.NewHandler(tasks.HandlerConfig{
		Queue: w.queue, Upstream: up, Gate: g, Outbox: w.outbox, Concurrency: u.Concurrency, Backoff: w.cfg.Backoff,
		Hooks: w.metrics.hooks(), Calls: w.calls, Fleet: w.fleet, Log: w.log,
	})
	server := tasks.NewServer(w.acks, tasks.ServerConfig{
		Upstream: u.Name, Concurrency: u.Concurrency, Poll: w.cfg.Poll, Drain: w.cfg.Drain, Quiet: w.cfg.RedisAway,
	}, handler, w.calls, w.log)
	return &unit{upstream: up, breaker: br, server: server}, nil
}

// clientHooks are the hooks of an upstream's client.
func (w *Worker) clientHooks(upstream string) httpx.Hooks {
	hooks, alarm := w.metrics.calls(upstream), newAlarm(upstream, w.log)
	counted := hooks.GiveUp
	hooks.GiveUp = func(ctx context.Context, e *httpx.Error) {
		counted(ctx, e)
		alarm.raise(ctx, e)
	}
	return hooks
}

// held says why the jobs of an upstream are held back at the gate, or "".
func (w *Worker) held(upstream string) string {
	for _, u := range w.units {
		if s := u.breaker.Status(); u.upstream.Name() == upstream && s.Fleet && s.State != breaker.Closed {
			return "breaker_open"
		}
	}
	return ""
}

// Run takes jobs until ctx ends, and returns when the calls in flight have finished or their jobs are back
// in the queue. Until then it serves [Worker.Handler] on a listener.
func (w *Worker) Run(ctx context.Context, ln net.Listener) error {
	// What the calls lean on must outlive them.
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var support, servers errgroup.Group
	support.Go(func() error {
		defer cancel() // a worker that cannot be watched should not work on unseen
		return w.serve(base, ln)
	})
	if w.outbox != nil {
		w.deliver(ctx) // before jobs are taken: one of them may be answered here
		support.Go(func() error { return w.outbox.Run(base) })
	}
	support.Go(func() error { return w.care.Run(base) })
	support.Go(func() error { return w.fleet.Run(base) })
	support.Go(func() error { return w.calls.Listen(base, w.rdb) })
	for _, u := range w.units {
		support.Go(func() error { return u.breaker.Sync(base) })
		servers.Go(func() error { return u.server.Run(ctx) })
	}
	close(w.ready)
	defer context.AfterFunc(ctx, func() { close(w.gone) })()
	err := servers.Wait()
	stop()
	for _, u := range w.units {
		u.upstream.Close()
	}
	err = errors.Join(err, support.Wait())
	if w.outbox != nil {
		w.deliver(context.WithoutCancel(ctx))
		err = errors.Join(err, w.outbox.Close())
	}
	return err
}

// deliverFor bounds a try to deliver answers at the start and at the end: what is left is safe on disk.
const deliverFor = 5 * time.Second

// deliver tries once. Its error is no other than that of the next try.
func (w *Worker) deliver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, deliverFor)
	defer cancel()
	err := w.outbox.Deliver(ctx)
	if left := w.outbox.Stats().Entries; left > 0 {
		w.log.LogAttrs(ctx, slog.LevelWarn, "answers wait on disk", slog.Int("count", left), slog.Any("error", err))
	}
}

func (w *Worker) serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: w.Handler(), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })() // a probe or scrape may be cut
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("worker: %w", err)
	}
	return nil
}

// Handler serves the worker's own address: /livez, /readyz, /healthz and /metrics.
func (w *Worker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(rw http.ResponseWriter, _ *http.Request) { w.answer(rw, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", w.health)
	mux.HandleFunc("GET /healthz", w.health)
	mux.Handle("GET /metrics", w.metrics.handler())
	return mux
}
