package redisclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrAway is in the chain of every error that says that Redis cannot be reached, or not yet: it loads its
// data, or a failover is under way. Commands of a client that is guarded by a [Health] have it.
var ErrAway = errors.New("redis is away")

const (
	probeEvery = 500 * time.Millisecond
	// probeLimit bounds one probe. With probeEvery it says how soon a Redis that accepts connections and
	// never answers is noticed: 1.5 s.
	probeLimit = time.Second
	// commandLimit bounds a guarded command whose caller set no deadline: asynq's inspector sets none.
	commandLimit = 2 * time.Second
	// roomMargin is how far below HealthConfig.FullAt the memory must fall before there is room again, so
	// that the answer does not change with every job.
	roomMargin = 0.05
)

// HealthConfig is when a Redis counts as full.
type HealthConfig struct {
	FullAt float64 // share of maxmemory in use, above 0 and at most 1; default 0.8
}

// DefaultFullAt leaves room for what the jobs at work must still write: their answers.
const DefaultFullAt = 0.8

// Health watches one Redis on a connection and a schedule of its own, so that what it says depends neither
// on traffic nor on a busy pool.
type Health struct {
	rdb    redis.UniversalClient // nobody else's
	cfg    HealthConfig
	log    *slog.Logger
	status atomic.Pointer[Status]
	served atomic.Pointer[time.Time] // when a guarded command was answered last; nil: never
	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
}

// Status is what a [Health] has seen last.
type Status struct {
	Up    bool
	Since time.Time // of Up, or of its opposite
	Full  bool      // new jobs should be refused
	Used  int64     // bytes, on Cluster of the fullest master; 0: not known
	Limit int64     // bytes; 0: none, or not known
}

// Watch begins to watch the Redis at an address as [Parse] reads it. Until the first probe it counts as up.
// It logs one line when Redis goes away and one when it is back. The caller ends it with [Health.Close].
func Watch(rawURL string, cfg HealthConfig, log *slog.Logger) (*Health, error) {
	opts, err := Parse(rawURL)
	if err != nil {
		return nil, err
	}
	opts.PoolSize = 1
	opts.MaxRetries = 1 // a connection that a restart has cut is no outage
	opts.DialerRetries = 1
	return watch(open(opts), cfg, log), nil
}

// OpenWatched opens the client of a program and begins to watch its Redis, which guards it. The caller closes
// both.
func OpenWatched(rawURL string, cfg HealthConfig, log *slog.Logger) (redis.UniversalClient, *Health, error) {
	rdb, err := Open(rawURL)
	if err != nil {
		return nil, nil, err
	}
	health, err := Watch(rawURL, cfg, log)
	if err != nil {
		_ = rdb.Close() // it has not been used
		return nil, nil, err
	}
	health.Guard(rdb)
	return rdb, health, nil
}

func watch(rdb redis.UniversalClient, cfg HealthConfig, log *slog.Logger) *Health {
	if cfg.FullAt == 0 {
		cfg.FullAt = DefaultFullAt
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &Health{
		rdb: rdb, cfg: cfg, log: log,
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
	}
	h.status.Store(&Status{Up: true, Since: time.Now()})
	go h.run(ctx)
	return h
}

// Close stops watching and waits for the probe at work.
func (h *Health) Close() {
	h.cancel()
	<-h.done
	_ = h.rdb.Close() // it held nothing
}

// Status is what the last probes saw.
func (h *Health) Status() Status { return *h.status.Load() }

// Away reports whether Redis is known to be away.
func (h *Health) Away() bool { return !h.status.Load().Up }

// Full reports whether Redis has too little room for new jobs.
func (h *Health) Full() bool { return h.status.Load().Full }

func (h *Health) run(ctx context.Context) {
	defer close(h.done)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		h.probe(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.wake:
		}
	}
}

// suspect makes the next probe happen now: a command has found Redis away.
func (h *Health) suspect() {
	if h.Away() {
		return
	}
	select {
	case h.wake <- struct{}{}:
	default: // asked already
	}
}

// probe asks for the memory: an answer of any kind says that Redis is up.
func (h *Health) probe(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	begun := time.Now()
	worst, err := h.memory(limited)
	if ctx.Err() != nil {
		return // closed: what failed says nothing about Redis
	}
	before := h.Status()
	now := before
	if now.Up = !isNetwork(err) || h.servedSince(begun); now.Up != before.Up {
		now.Since = time.Now()
	}
	if err == nil {
		now.Used, now.Limit, now.Full = worst.used, worst.limit, h.full(worst, before.Full)
	}
	h.status.Store(&now)
	h.report(ctx, before, now, err)
}

// servedSince reports whether a guarded command has been answered since. Then it was the probe that failed:
// a machine short of processor time can take a second for one.
func (h *Health) servedSince(t time.Time) bool {
	last := h.served.Load()
	return last != nil && last.After(t)
}

func (h *Health) full(m usage, was bool) bool {
	at := h.cfg.FullAt
	if was {
		at -= roomMargin
	}
	return m.share() >= at
}

func (h *Health) report(ctx context.Context, before, now Status, err error) {
	switch {
	case before.Up && !now.Up:
		h.log.LogAttrs(ctx, slog.LevelError, "redis is away", slog.String("cause", err.Error()))
	case !before.Up && now.Up:
		h.log.LogAttrs(ctx, slog.LevelInfo, "redis is back", slog.Int64("away_ms", now.Since.Sub(before.Since).Milliseconds()))
	}
	memory := []slog.Attr{slog.Int64("used_bytes", now.Used), slog.Int64("maxmemory_bytes", now.Limit), slog.Float64("full_at", h.cfg.FullAt)}
	switch {
	case !before.Full && now.Full:
		h.log.LogAttrs(ctx, slog.LevelWarn, "redis is nearly full: new jobs are refused", memory...)
	case before.Full && !now.Full:
		h.log.LogAttrs(ctx, slog.LevelInfo, "redis has room again", memory...)
	}
}

// usage is what a server has of memory, in bytes.
type usage struct{ used, limit int64 }

func (u usage) share() float64 {
	if u.limit == 0 {
		return 0
	}
	return float64(u.used) / float64(u.limit)
}

// memory reads what the fullest master has in use.
func (h *Health) memory(ctx context.Context) (worst usage, err error) {
	var mu sync.Mutex // guards worst
	err = anyMaster(ctx, h.rdb, func(ctx context.Context, node redis.UniversalClient) error {
		text, err := node.Info(ctx, "memory").Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if u := parseMemory(text); u.share() >= worst.share() {
			worst = u
		}
		return nil
	})
	return worst, err
}

// anyMaster asks the server, or on Cluster every master at once, and fails if none could answer: a cluster
// without one of its masters still serves the rest.
func anyMaster(ctx context.Context, rdb redis.UniversalClient, ask func(context.Context, redis.UniversalClient) error) error {
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		return ask(ctx, rdb)
	}
	var answered atomic.Bool
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		err := ask(ctx, node)
		if err == nil {
			answered.Store(true)
		}
		return err
	})
	if answered.Load() {
		return nil
	}
	return err
}

// parseMemory reads the reply of INFO memory. What is not there is 0.
func parseMemory(info string) (u usage) {
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		n, err := strconv.ParseInt(value, 10, 64)
		switch {
		case err != nil || n < 0:
		case name == "used_memory":
			u.used = n
		case name == "maxmemory":
			u.limit = n
		}
	}
	return u
}

// Guard makes the commands of a client fail at once, with [ErrAway], while Redis is away: nobody waits for
// a dial whose end is known. It bounds commands that have no deadline, and marks with ErrAway whatever
// fails for want of Redis. It must not be given the client whose owner asks again at once, as asynq's
// server does.
func (h *Health) Guard(rdb redis.UniversalClient) { rdb.AddHook(guard{h}) }

type guard struct{ health *Health }

var _ redis.Hook = guard{}

// DialHook passes through.
func (g guard) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook guards one command.
func (g guard) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := g.run(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
		if errors.Is(err, ErrAway) {
			cmd.SetErr(err)
		}
		return err
	}
}

// ProcessPipelineHook guards commands that are sent together.
func (g guard) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := g.run(ctx, func(ctx context.Context) error { return next(ctx, cmds) })
		if errors.Is(err, ErrAway) {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

func (g guard) run(ctx context.Context, do func(context.Context) error) error {
	if s := g.health.Status(); !s.Up {
		return fmt.Errorf("%w since %s", ErrAway, s.Since.UTC().Format(time.RFC3339))
	}
	if _, bounded := ctx.Deadline(); !bounded {
		limited, cancel := context.WithTimeout(ctx, commandLimit)
		defer cancel()
		ctx = limited
	}
	err := do(ctx)
	if !isNetwork(err) {
		now := time.Now()
		g.health.served.Store(&now)
		return err
	}
	g.health.suspect()
	return fmt.Errorf("%w: %w", ErrAway, err)
}
