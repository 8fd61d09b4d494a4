package breaker_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
)

// virtual runs test in a bubble with a miniredis whose TIME is the bubble's.
func virtual(t *testing.T, cfg breaker.Config, test func(t *testing.T, f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		rdb := redis.NewClient(&redis.Options{
			Addr:                  "127.0.0.1:1", // never dialed
			Dialer:                func(context.Context, string, string) (net.Conn, error) { return m.Dial() },
			ContextTimeoutEnabled: true,
			// Nothing but the test's own clock may run in the bubble.
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		t.Cleanup(func() {
			require.NoError(t, rdb.Close())
			m.Close()
		})
		test(t, fleetOn(t, rdb, cfg))
	})
}

// load runs work perSecond times a second for d and returns how many ran.
func load(b *breaker.Shared, perSecond int, d time.Duration, work func() error) (ran int) {
	counted := func() error { ran++; return work() }
	for range int(d.Seconds() * float64(perSecond)) {
		_ = b.Run(counted)
		time.Sleep(time.Second / time.Duration(perSecond))
	}
	return ran
}

func TestSharedRunOfFailuresIsFoldedAtOnce(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		load(b, 1000, 150*time.Millisecond, succeed) // a fold is half over
		ran := 0
		for b.Status().State == breaker.Closed {
			_ = b.Run(func() error { ran++; return errSick })
			synctest.Wait()
		}
		require.Equal(t, 40, ran, "20 with the successes before them, 20 alone")
	})
}

// scripts counts the scripts a client sends.
type scripts struct{ sent atomic.Int64 }

var _ redis.Hook = (*scripts)(nil)

func (s *scripts) DialHook(next redis.DialHook) redis.DialHook { return next }
func (s *scripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *scripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			s.sent.Add(1)
		}
		return next(ctx, cmd)
	}
}

func (s *scripts) during(work func()) int64 {
	before := s.sent.Load()
	work()
	return s.sent.Load() - before
}

func TestSharedOutageStopsAllWorkersWithin250ms(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		fleet := make([]*breaker.Shared, 5)
		for i := range fleet {
			fleet[i], _ = f.member()
			load(fleet[i], 100, time.Second, succeed)
		}
		began := time.Now()
		for range 5 { // 25 failures, five a worker: no single one sees a long run
			for _, b := range fleet {
				require.Equal(t, errSick, b.Run(fail))
			}
		}
		for _, b := range fleet {
			f.await(func() bool { return b.Status().State == breaker.Open })
		}
		require.LessOrEqual(t, time.Since(began), 250*time.Millisecond)
	})
}

func TestSharedOpenTimeGrowsToItsCap(t *testing.T) {
	virtual(t, breaker.Config{OpenJitter: -1}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		for range 20 {
			_ = b.Run(fail)
		}
		for _, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
			f.await(func() bool { return b.Status().State == breaker.Open })
			require.InDelta(t, float64(want*time.Second), float64(time.Until(b.Status().OpenUntil)), float64(200*time.Millisecond))
			time.Sleep(time.Until(b.Status().OpenUntil))
			f.await(func() bool { return errors.Is(b.Run(fail), errSick) })
		}
	})
}

// probe runs one probe after another with the given outcomes: + is healthy.
func (f *fleet) probe(b *breaker.Shared, outcomes string) {
	for _, o := range outcomes {
		work := map[rune]func() error{'+': succeed, '-': fail}[o]
		f.await(func() bool {
			var refused *breaker.OpenError
			return !errors.As(b.Run(work), &refused)
		})
		synctest.Wait()
	}
}

func TestSharedHalfOpenIsJudgedByTheFailureRatio(t *testing.T) {
	tests := []struct {
		name   string
		cfg    breaker.Config
		probes string
		state  breaker.State
		wait   time.Duration // open time; the first was 5 s
	}{
		{name: "a first failure reopens for longer", probes: "-", state: breaker.Open, wait: 10 * time.Second},
		{name: "a failure after a success does not", probes: "+-", state: breaker.HalfOpen},
		{name: "four failures leave three of seven", probes: "+----+", state: breaker.HalfOpen},
		{name: "and the third success closes", probes: "+--+--+", state: breaker.Closed},
		{name: "five failures would be 5 of 8, and reopen for as long as before", probes: "+-----", state: breaker.Open, wait: 5 * time.Second},
		{name: "a success before the last does not help", probes: "+----+-", state: breaker.Open, wait: 5 * time.Second},
		{name: "reaching the ratio is too much", cfg: breaker.Config{FailureRatio: 0.5}, probes: "+---", state: breaker.Open, wait: 5 * time.Second},
		{name: "a low ratio allows none", cfg: breaker.Config{FailureRatio: 0.2}, probes: "+-", state: breaker.Open, wait: 5 * time.Second},
		{name: "a ratio of 1 allows MinCalls less one", cfg: breaker.Config{FailureRatio: 1, MinCalls: 4}, probes: "+---", state: breaker.HalfOpen},
		{name: "and no more", cfg: breaker.Config{FailureRatio: 1, MinCalls: 4}, probes: "+----", state: breaker.Open, wait: 5 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.OpenJitter = -1
			virtual(t, tt.cfg, func(t *testing.T, f *fleet) {
				b, _ := f.member()
				for range 20 {
					_ = b.Run(fail)
				}
				f.await(func() bool { return b.Status().State == breaker.HalfOpen })
				f.probe(b, tt.probes)
				s := b.Status()
				require.Equal(t, tt.state, s.State)
				require.Equal(t, int64(strings.Count(tt.probes, "+")), s.ProbeSuccesses)
				require.Equal(t, int64(strings.Count(tt.probes, "-")), s.ProbeFailures)
				if tt.wait > 0 {
					require.Equal(t, breaker.ProbeFailed, s.Reason)
					require.Equal(t, tt.wait, s.OpenUntil.Sub(s.Since).Round(time.Second))
				}
			})
		})
	}
}

func TestSharedHalfOpenIsSeenWithoutTraffic(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		for range 20 {
			_ = b.Run(fail)
		}
		f.await(func() bool { return b.Status().State == breaker.Open })
		time.Sleep(time.Until(b.Status().OpenUntil) + 100*time.Millisecond)
		synctest.Wait()
		require.Equal(t, breaker.HalfOpen, b.Status().State)
	})
}

func TestSharedLeaseOfADeadHolderExpires(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		a, halt := f.member()
		b, _ := f.member()
		load(a, 1000, 40*time.Millisecond, fail)
		f.await(func() bool { return a.Status().State == breaker.HalfOpen })
		release, done := make(chan struct{}), make(chan error)
		go func() { done <- a.Run(func() error { <-release; return context.Canceled }) }()
		f.await(func() bool { return b.Status().Probes == 1 })
		halt() // nobody renews the lease, as after a crash
		began := time.Now()
		f.await(func() bool { return b.Run(succeed) == nil })
		require.InDelta(t, 5*time.Second, time.Since(began), float64(1500*time.Millisecond))
		close(release)
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestSharedLongProbeKeepsItsLease(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		a, _ := f.member()
		b, _ := f.member()
		load(a, 1000, 40*time.Millisecond, fail)
		f.await(func() bool { return b.Status().State == breaker.HalfOpen })
		require.NoError(t, a.Run(func() error {
			require.Zero(t, load(b, 20, time.Minute, succeed), "the only probe is taken")
			return nil
		}))
		f.await(func() bool { return b.Run(succeed) == nil })
	})
}

func TestSharedRampAdmitsAGrowingShare(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		for range 20 {
			_ = b.Run(fail)
		}
		f.await(func() bool { return b.Status().State == breaker.HalfOpen })
		f.await(func() bool { _ = b.Run(succeed); return b.Status().State == breaker.Closed })
		for _, want := range []float64{0.19, 0.37, 0.55, 0.73, 0.91, 1} { // the middle of each second
			share := float64(load(b, 5000, time.Second, succeed)) / 5000
			require.InDelta(t, want, share, 0.04)
		}
		require.True(t, b.Status().RampEnd.IsZero())
	})
}

func TestSharedAsksRedisSparingly(t *testing.T) {
	virtual(t, breaker.Config{OpenFor: 30 * time.Second, OpenJitter: -1}, func(t *testing.T, f *fleet) {
		sent := new(scripts)
		f.rdb.(*redis.Client).AddHook(sent)
		b, _ := f.member()
		require.LessOrEqual(t, sent.during(func() { time.Sleep(10 * time.Second) }), int64(10), "idle: the poll")
		require.LessOrEqual(t, sent.during(func() { load(b, 1000, 10*time.Second, succeed) }), int64(100), "busy: ten folds a second")
		load(b, 1000, 200*time.Millisecond, fail)
		require.Equal(t, breaker.Open, b.Status().State)
		require.LessOrEqual(t, sent.during(func() { load(b, 1000, 10*time.Second, succeed) }), int64(11), "open: the poll")

		time.Sleep(time.Until(b.Status().OpenUntil))
		f.await(func() bool {
			return b.Run(func() error { // the only probe takes 10 s
				n := sent.during(func() { require.Zero(t, load(b, 1000, 10*time.Second, succeed)) })
				require.LessOrEqual(t, n, int64(52), "half-open: the poll and four permits a second")
				return nil
			}) == nil
		})
	})
}

func TestSharedSlowCallsOpen(t *testing.T) {
	virtual(t, breaker.Config{SlowCall: 10 * time.Millisecond}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		slow := func() error { time.Sleep(20 * time.Millisecond); return nil }
		f.await(func() bool { _ = b.Run(slow); return b.Status().State == breaker.Open })
		require.Equal(t, breaker.SlowRatio, b.Status().Reason)
		time.Sleep(time.Until(b.Status().OpenUntil))
		f.await(func() bool { return b.Run(slow) == nil })
		synctest.Wait()
		require.Equal(t, breaker.ProbeFailed, b.Status().Reason, "a slow probe does not close")
	})
}

func TestSharedCanceledCallsSayNothing(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		require.Equal(t, 100, load(b, 100, time.Second, func() error { return context.Canceled }))
		require.Zero(t, b.Status().Calls)
	})
}

func TestSharedLateOutcomesOfAnOutageDoNotCount(t *testing.T) {
	virtual(t, breaker.Config{Ramp: -1}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		release := make(chan struct{})
		stuck := make(chan error)
		for range 30 {
			go func() { stuck <- b.Run(func() error { <-release; return errSick }) }()
		}
		synctest.Wait()
		for range 20 {
			_ = b.Run(fail)
		}
		f.await(func() bool { return b.Status().State == breaker.HalfOpen })
		f.await(func() bool { _ = b.Run(succeed); return b.Status().State == breaker.Closed })
		close(release)
		for range 30 {
			require.Equal(t, errSick, <-stuck)
		}
		time.Sleep(2 * time.Second)
		require.Zero(t, b.Status().Failures)
	})
}

func TestSharedOperatorAndOpenTimeOutliveRedis(t *testing.T) {
	virtual(t, breaker.Config{OpenFor: 20 * time.Second, OpenJitter: -1}, func(t *testing.T, f *fleet) {
		var dead atomic.Bool
		f.rdb.(*redis.Client).AddHook(deadHook{&dead})
		b, _ := f.member()
		for range 20 {
			_ = b.Run(fail)
		}
		f.await(func() bool { return b.Status().State == breaker.Open })
		dead.Store(true)
		f.await(func() bool { return !b.Status().Fleet })
		require.Greater(t, refused(t, b.Run(succeed), breaker.Open), 15*time.Second)
		time.Sleep(20 * time.Second)
		require.NoError(t, b.Run(succeed), "the open time is over, the fuse is closed")

		dead.Store(false)
		f.await(func() bool { return b.Status().Fleet })
		require.NoError(t, b.Override(t.Context(), breaker.ForceOpen))
		dead.Store(true)
		f.await(func() bool { return !b.Status().Fleet })
		time.Sleep(10 * time.Minute)
		refused(t, b.Run(succeed), breaker.Open)
	})
}

func TestSharedReportsOnceThatRedisIsGone(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		var dead atomic.Bool
		dead.Store(true)
		f.rdb.(*redis.Client).AddHook(deadHook{&dead})
		b, err := breaker.New(f.rdb, f.cfg)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Sync(ctx) }()
		time.Sleep(time.Minute)
		require.Equal(t, []string{"redis_gone"}, f.log.reasons(), "gone from the start")
		dead.Store(false)
		time.Sleep(time.Minute)
		dead.Store(true)
		time.Sleep(900 * time.Millisecond)
		dead.Store(false)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"redis_gone", "redis_back"}, f.log.reasons(), "a gap below the grace is no news")
		cancel()
		require.NoError(t, <-done)
	})
}

// outsider is a Shared of another process, without Sync and with numbers of
// its own: it shows upstreams and never calls them.
func (f *fleet) outsider(t *testing.T) *breaker.Shared {
	b, err := breaker.New(f.rdb, breaker.Config{
		Name: "openai", Window: time.Minute, OpenFor: time.Second, MaxOpenFor: time.Second, ProbeLease: time.Second, Poll: time.Second / 2,
		OnChange: func(c breaker.Change) { t.Errorf("an outsider reports %v", c) },
	})
	require.NoError(t, err)
	return b
}

func fetch(t *testing.T, b *breaker.Shared) breaker.Status {
	t.Helper()
	s, err := b.Fetch(t.Context())
	require.NoError(t, err)
	return s
}

func TestSharedFetchNeedsNoSyncAndChangesNothing(t *testing.T) {
	virtual(t, breaker.Config{OpenFor: 30 * time.Second, ProbeLease: 20 * time.Second, Ramp: -1}, func(t *testing.T, f *fleet) {
		api := f.outsider(t)
		s := fetch(t, api)
		require.Equal(t, breaker.Status{Name: "openai", Fleet: true, Since: s.Since}, s)
		require.LessOrEqual(t, time.Since(s.Since), time.Millisecond, "unknown upstreams are closed since now")
		require.Empty(t, f.rdb.Keys(t.Context(), "*").Val())

		b, _ := f.member()
		same := func() {
			t.Helper()
			time.Sleep(1500 * time.Millisecond) // b polls
			want, got := b.Status(), fetch(t, api)
			require.WithinDuration(t, want.Since, got.Since, 2*time.Millisecond)
			require.WithinDuration(t, want.OpenUntil, got.OpenUntil, 2*time.Millisecond)
			got.Since, got.OpenUntil = want.Since, want.OpenUntil
			require.Equal(t, want, got)
		}
		load(b, 100, time.Second, succeed)
		load(b, 100, time.Second/10, fail)
		same()
		require.Equal(t, int64(110), fetch(t, api).Calls)
		for range 20 {
			_ = b.Run(fail)
		}
		same()
		require.Equal(t, breaker.HardFailures, fetch(t, api).Reason)
		time.Sleep(time.Until(b.Status().OpenUntil))
		f.probe(b, "+-")
		release, done := make(chan struct{}), make(chan error)
		f.await(func() bool { return b.Status().State == breaker.HalfOpen })
		go func() { done <- b.Run(func() error { <-release; return nil }) }()
		same()
		s = fetch(t, api)
		require.Equal(t, []int64{1, 1, 1}, []int64{s.Probes, s.ProbeSuccesses, s.ProbeFailures})
		close(release)
		require.NoError(t, <-done)
		f.probe(b, "+")
		same()
		require.Equal(t, breaker.ProbesHealthy, fetch(t, api).Reason)
		require.False(t, api.Status().Fleet, "what was fetched stays outside")
	})
}

func TestSharedFetchAndOverrideFailWithRedis(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		dead := new(atomic.Bool)
		dead.Store(true)
		f.rdb.(*redis.Client).AddHook(deadHook{dead})
		api := f.outsider(t)
		_, err := api.Fetch(t.Context())
		require.EqualError(t, err, "breaker: openai: read: connection refused")
		require.EqualError(t, api.Override(t.Context(), breaker.ForceOpen), "breaker: openai: override: connection refused")
	})
}

func TestSharedOverrideNeedsNoSync(t *testing.T) {
	virtual(t, breaker.Config{}, func(t *testing.T, f *fleet) {
		b, _ := f.member()
		api := f.outsider(t)
		require.NoError(t, api.Override(t.Context(), breaker.ForceOpen))
		f.await(func() bool { return b.Status().Mode == breaker.ForceOpen })
		refused(t, b.Run(succeed), breaker.Open)
		s := fetch(t, api)
		require.Equal(t, []any{breaker.Open, breaker.ForceOpen, breaker.Operator}, []any{s.State, s.Mode, s.Reason})
		require.NoError(t, api.Run(succeed), "without Sync the fuse stays in charge")

		require.NoError(t, api.Override(t.Context(), breaker.Auto))
		f.await(func() bool { return b.Status().Mode == breaker.Auto })
		require.NoError(t, b.Run(succeed))
		require.Equal(t, breaker.Closed, fetch(t, api).State)
	})
}

func TestSharedLogsTheNumbersThatDecided(t *testing.T) {
	virtual(t, breaker.Config{OpenJitter: -1}, func(t *testing.T, f *fleet) {
		var lines strings.Builder
		f.cfg.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))
		b, halt := f.member()
		for range 20 {
			_ = b.Run(fail)
		}
		f.await(func() bool { return b.Status().State == breaker.HalfOpen })
		f.probe(b, "+-----")
		halt()
		const rest = " calls=20 failures=20 slow=0 consecutive=20 trips=1 "
		require.Equal(t, `level=WARN msg="breaker changed" upstream=openai from=closed to=open reason=hard_failures`+rest+`probe_successes=0 probe_failures=0 open_for_ms=5000
level=INFO msg="breaker changed" upstream=openai from=open to=half-open reason=open_time_over`+rest+`probe_successes=0 probe_failures=0
level=WARN msg="breaker changed" upstream=openai from=half-open to=open reason=probe_failed`+rest+`probe_successes=1 probe_failures=5 open_for_ms=5000
`, lines.String())
	})
}

// deadHook fails every command while dead.
type deadHook struct{ dead *atomic.Bool }

func (d deadHook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (d deadHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (d deadHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if d.dead.Load() {
			return errors.New("connection refused")
		}
		return next(ctx, cmd)
	}
}
