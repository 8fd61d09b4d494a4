package breaker

import (
	"testing"
	"time"

	"github.com/eapache/go-resiliency/breaker"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

func noWork() error { return nil }

// closedShared is a Shared after Redis has said "closed", without Sync: what
// every call of a healthy upstream meets.
func closedShared(tb testing.TB, cfg Config) *Shared {
	cfg.Name = "openai"
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // never dialed
	tb.Cleanup(func() { require.NoError(tb, rdb.Close()) })
	b, err := New(rdb, cfg)
	require.NoError(tb, err)
	b.apply(verdict{epoch: 1})
	require.True(tb, b.view.Load().free)
	return b
}

func TestSharedClosedCallDoesNotAllocate(t *testing.T) {
	b := closedShared(t, Config{SlowCall: time.Second})
	if n := testing.AllocsPerRun(1000, func() { _ = b.Run(noWork) }); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

func benchmark(b *testing.B, run func(func() error) error) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if run(noWork) != nil {
				b.Fail()
			}
		}
	})
}

func BenchmarkSharedClosed(b *testing.B) { benchmark(b, closedShared(b, Config{}).Run) }

func BenchmarkSharedClosedSlowCallOn(b *testing.B) {
	benchmark(b, closedShared(b, Config{SlowCall: time.Minute}).Run)
}

func BenchmarkLocalClosed(b *testing.B) {
	l, err := NewLocal(LocalConfig{})
	require.NoError(b, err)
	benchmark(b, l.Run)
}

func BenchmarkGoResiliencyClosed(b *testing.B) {
	benchmark(b, breaker.New(20, 3, 5*time.Second).Run)
}

func BenchmarkSharedOpen(b *testing.B) {
	s := closedShared(b, Config{})
	s.apply(verdict{epoch: 2, state: Open, reopenIn: time.Hour})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if s.Run(noWork) == nil {
				b.Fail()
			}
		}
	})
}

// BenchmarkFold is one exchange with a redis-server on loopback, with a full
// window: the cost of a tenth of a second of any number of calls.
func BenchmarkFold(b *testing.B) {
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr()})
	defer rdb.Close()
	s, err := New(rdb, Config{Name: "openai", Window: 100 * time.Millisecond, FoldEvery: 50 * time.Millisecond})
	require.NoError(b, err)
	s.exchange(b.Context(), s.view.Load(), counts{})
	b.ReportAllocs()
	for b.Loop() {
		s.exchange(b.Context(), s.view.Load(), counts{healthy: 10})
	}
	require.Positive(b, s.Status().Calls)
}
