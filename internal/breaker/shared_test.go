package breaker_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

var errSick = errors.New("503")

func fail() error    { return errSick }
func succeed() error { return nil }

// refused fails the test unless err refuses a call because of state, and
// returns the wait.
func refused(t testing.TB, err error, state breaker.State) time.Duration {
	t.Helper()
	var open *breaker.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, state, open.State)
	return open.RetryAfter()
}

// fleet is some Shared breakers over one Redis.
type fleet struct {
	t   testing.TB
	rdb redis.UniversalClient
	cfg breaker.Config
	log *changes
}

// changes collects what OnChange reports, over all members.
type changes struct {
	mu   sync.Mutex // guards list
	list []breaker.Change
}

func (c *changes) add(change breaker.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, change)
}

func (c *changes) reasons() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var reasons []string
	for _, change := range c.list {
		reasons = append(reasons, change.Reason.String())
	}
	return reasons
}

func client(t testing.TB, addr string) *redis.Client {
	rdb := redis.NewClient(&redis.Options{
		Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialTimeout: 200 * time.Millisecond, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

// startRedis starts a redis-server that ends with the test.
func startRedis(t testing.TB, opts ...func(*redisserver.Config)) *redisserver.Server {
	if testing.Short() {
		t.Skip("-short: starts a redis-server")
	}
	return redistest.Start(t, opts...)
}

// newFleet runs over a redis-server of its own.
func newFleet(t testing.TB, cfg breaker.Config) *fleet {
	return fleetOn(t, client(t, startRedis(t).Addr()), cfg)
}

func fleetOn(t testing.TB, rdb redis.UniversalClient, cfg breaker.Config) *fleet {
	f := &fleet{t: t, rdb: rdb, cfg: cfg, log: new(changes)}
	f.cfg.Name = "openai"
	f.cfg.OnChange = f.log.add
	return f
}

// member adds a Shared whose Sync runs until the test ends or halt is called.
// It returns when the member has heard from Redis.
func (f *fleet) member() (b *breaker.Shared, halt func()) {
	f.t.Helper()
	b, err := breaker.New(f.rdb, f.cfg)
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Sync(ctx) // nil, as TestSyncEndsWithItsContext holds
	}()
	halt = sync.OnceFunc(func() { cancel(); <-done })
	f.t.Cleanup(halt)
	f.await(func() bool { return b.Status().Fleet })
	return b, halt
}

// await polls until ok, for at most 10 s.
func (f *fleet) await(ok func() bool) {
	f.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			f.t.Fatalf("not reached; changes so far: %v", f.log.reasons())
		}
	}
}

// quick keeps a test on a real clock short.
func quick() breaker.Config {
	return breaker.Config{
		FoldEvery: 5 * time.Millisecond, Poll: 20 * time.Millisecond,
		OpenFor: 50 * time.Millisecond, MaxOpenFor: 400 * time.Millisecond,
		PermitEvery: 5 * time.Millisecond, Ramp: -1, Local: breaker.LocalConfig{OpenFor: 50 * time.Millisecond},
	}
}

func TestSharedOneVerdictForTheFleet(t *testing.T) {
	cfg := quick()
	cfg.OpenFor, cfg.MaxOpenFor = time.Minute, time.Minute
	f := newFleet(t, cfg)
	sick, _ := f.member()
	other, _ := f.member()
	for range 20 {
		require.Equal(t, errSick, sick.Run(fail))
	}
	began := time.Now()
	f.await(func() bool { return other.Status().State == breaker.Open })
	t.Logf("the other worker refused after %v", time.Since(began))
	for _, b := range []*breaker.Shared{sick, other} {
		f.await(func() bool { return b.Status().State == breaker.Open })
		wait := refused(t, b.Run(func() error { t.Error("work ran"); return nil }), breaker.Open)
		require.InDelta(t, time.Minute, wait, float64(7*time.Second))
		require.Equal(t, breaker.HardFailures, b.Status().Reason)
	}
}

func TestSharedHalfOpenAdmitsTheConfiguredProbesOnly(t *testing.T) {
	for _, probes := range []int{1, 3} {
		cfg := quick()
		cfg.Probes = probes
		cfg.OpenFor, cfg.MaxOpenFor = 10*time.Millisecond, 10*time.Millisecond
		cfg.PermitEvery = time.Millisecond
		f := newFleet(t, cfg)
		a, _ := f.member()
		b, _ := f.member()
		for range 20 {
			_ = a.Run(fail)
		}
		f.await(func() bool { return a.Status().State != breaker.Closed && b.Status().State != breaker.Closed })

		var running, most, cycles atomic.Int64
		var wg sync.WaitGroup
		probe := func() error {
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-time.After(3 * time.Millisecond) // longer than a permit takes, so that callers overlap
			running.Add(-1)
			cycles.Add(1)
			return errSick
		}
		for i := range 16 {
			wg.Go(func() {
				for cycles.Load() < 20 {
					_ = []*breaker.Shared{a, b}[i%2].Run(probe)
					<-time.After(time.Millisecond)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, most.Load(), int64(probes))
		t.Logf("%d probes: %d cycles, at most %d at once", probes, cycles.Load(), most.Load())
	}
}

func TestSharedClosesAfterSuccessfulProbes(t *testing.T) {
	f := newFleet(t, quick())
	a, _ := f.member()
	b, _ := f.member()
	for range 20 {
		_ = a.Run(fail)
	}
	f.await(func() bool { return a.Status().State != breaker.Closed })
	ran := 0
	f.await(func() bool {
		if a.Run(succeed) == nil {
			ran++
		}
		return a.Status().State == breaker.Closed
	})
	require.Equal(t, 3, ran, "probes until closed")
	f.await(func() bool { return b.Status().State == breaker.Closed })
}

func TestSharedStaysClosedAtTwoPercent(t *testing.T) {
	cfg := quick()
	cfg.Grace = time.Minute // the load below may starve Redis on a small machine
	f := newFleet(t, cfg)
	a, _ := f.member()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 250_000 {
				work := succeed
				if i%50 == 0 {
					work = fail
				}
				if open, ok := errors.AsType[*breaker.OpenError](a.Run(work)); ok {
					t.Errorf("call %d: %v", i, open)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, f.log.reasons())
}

func TestSharedWithoutRedisTheFuseDecidesAndRedisHealsIt(t *testing.T) {
	server := startRedis(t)
	f := fleetOn(t, client(t, server.Addr()), quick())
	var lines strings.Builder
	f.cfg.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	b, halt := f.member()
	require.NoError(t, server.Stop(t.Context()))
	f.await(func() bool { return !b.Status().Fleet })
	for range 20 {
		require.Equal(t, errSick, b.Run(fail))
	}
	require.LessOrEqual(t, refused(t, b.Run(succeed), breaker.Open), 50*time.Millisecond)
	f.await(func() bool { _ = b.Run(succeed); return b.Status().State == breaker.Closed })

	require.NoError(t, server.Restart(t.Context()))
	f.await(func() bool { return b.Status().Fleet })
	for range 20 {
		_ = b.Run(fail)
	}
	f.await(func() bool { return b.Status().Fleet && b.Status().State == breaker.Open })
	halt()
	require.Equal(t, "redis_gone", f.log.reasons()[0])
	require.Contains(t, f.log.reasons(), "redis_back")
	require.LessOrEqual(t, strings.Count(lines.String(), "\n"), 8, "one line per change:\n%s", &lines)
}

func TestSharedFrozenRedisDoesNotHoldCalls(t *testing.T) {
	server := startRedis(t)
	f := fleetOn(t, client(t, server.Addr()), quick())
	b, _ := f.member()
	require.NoError(t, server.Pause())
	began := time.Now()
	f.await(func() bool { require.NoError(t, b.Run(succeed)); return !b.Status().Fleet })
	require.Less(t, time.Since(began), 5*time.Second)
	require.NoError(t, server.Resume())
	f.await(func() bool { return b.Status().Fleet })
}

func TestSharedOverride(t *testing.T) {
	f := newFleet(t, quick())
	a, _ := f.member()
	b, _ := f.member()
	require.NoError(t, a.Override(t.Context(), breaker.ForceOpen))
	f.await(func() bool { return b.Status().Mode == breaker.ForceOpen })
	refused(t, b.Run(succeed), breaker.Open)
	require.NoError(t, b.Override(t.Context(), breaker.ForceClosed))
	f.await(func() bool { return a.Status().Mode == breaker.ForceClosed })
	for range 200 {
		require.Equal(t, errSick, a.Run(fail))
	}
	f.await(func() bool { return b.Status().Calls == 200 })
	require.Equal(t, breaker.Closed, b.Status().State)
	require.NoError(t, b.Override(t.Context(), breaker.Auto))
	f.await(func() bool { return a.Status().Mode == breaker.Auto })
	require.NoError(t, a.Run(succeed))
}

func TestSharedFollowsARedisThatWentBack(t *testing.T) {
	tests := []struct {
		name  string
		goOut func(t *testing.T, rdb redis.UniversalClient)
	}{
		{name: "to an empty one", goOut: func(t *testing.T, rdb redis.UniversalClient) {
			require.NoError(t, rdb.FlushAll(t.Context()).Err())
		}},
		{name: "to a replica that missed the trip", goOut: func(t *testing.T, rdb redis.UniversalClient) {
			require.NoError(t, rdb.HSet(t.Context(), "ferry:breaker:{openai}:state", "state", 0, "epoch", 7).Err())
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := quick()
			cfg.OpenFor, cfg.MaxOpenFor = time.Hour, time.Hour
			f := newFleet(t, cfg)
			a, _ := f.member()
			for range 20 {
				_ = a.Run(fail)
			}
			f.await(func() bool { return a.Status().State == breaker.Open })
			tt.goOut(t, f.rdb)
			f.await(func() bool { return a.Run(succeed) == nil })
		})
	}
}

func TestSharedOnRedisCluster(t *testing.T) {
	bus, err := net.Listen("tcp", "127.0.0.1:0") // the default bus port may be above 65535
	require.NoError(t, err)
	require.NoError(t, bus.Close())
	port := strconv.Itoa(bus.Addr().(*net.TCPAddr).Port)
	server := startRedis(t, func(c *redisserver.Config) {
		c.Args = []string{"--cluster-enabled", "yes", "--cluster-port", port}
	})
	node := client(t, server.Addr())
	require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr()}, ContextTimeoutEnabled: true})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	f := fleetOn(t, rdb, quick())
	f.await(func() bool {
		info, err := node.ClusterInfo(t.Context()).Result()
		return err == nil && strings.Contains(info, "cluster_state:ok")
	})
	a, _ := f.member()
	b, _ := f.member()
	for range 20 {
		_ = a.Run(fail)
	}
	f.await(func() bool { return b.Status().State != breaker.Closed })
	f.await(func() bool { _ = b.Run(succeed); return a.Status().State == breaker.Closed })
}

func TestSharedPanicPassesThroughAndFreesItsProbe(t *testing.T) {
	f := newFleet(t, quick())
	a, _ := f.member()
	for range 20 {
		_ = a.Run(fail)
	}
	f.await(func() bool { return a.Status().State == breaker.HalfOpen })
	require.PanicsWithValue(t, "bug", func() {
		f.await(func() bool { return a.Run(func() error { panic("bug") }) == nil })
	})
	f.await(func() bool { return a.Run(succeed) == nil })
}

func TestSyncEndsWithItsContext(t *testing.T) {
	f := newFleet(t, quick())
	b, err := breaker.New(f.rdb, f.cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Sync(ctx) }()
	f.await(func() bool { return b.Status().Fleet })
	require.EqualError(t, b.Sync(ctx), "breaker: openai: Sync is already running")
	cancel()
	require.NoError(t, <-done)
}
