package breaker_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
)

func newLocal(t *testing.T) *breaker.Local {
	l, err := breaker.NewLocal(breaker.LocalConfig{Name: "openai"})
	require.NoError(t, err)
	return l
}

func trip(l *breaker.Local) {
	for range 20 {
		_ = l.Run(fail)
	}
}

func TestLocalOpensOnConsecutiveFailuresOnly(t *testing.T) {
	tests := []struct {
		name  string
		calls func(l *breaker.Local)
		want  breaker.State
	}{
		{"nineteen in a row", func(l *breaker.Local) {
			for range 19 {
				_ = l.Run(fail)
			}
		}, breaker.Closed},
		{"twenty in a row", trip, breaker.Open},
		{"two percent of a million", func(l *breaker.Local) {
			for i := range 1_000_000 {
				if i%50 == 0 {
					_ = l.Run(fail)
				} else {
					_ = l.Run(succeed)
				}
			}
		}, breaker.Closed},
		{"callers that gave up", func(l *breaker.Local) {
			for range 100 {
				_ = l.Run(func() error { return context.Canceled })
			}
		}, breaker.Closed},
		{"a success between", func(l *breaker.Local) {
			for range 10 {
				for range 19 {
					_ = l.Run(fail)
				}
				_ = l.Run(succeed)
			}
		}, breaker.Closed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLocal(t)
				tt.calls(l)
				if got := l.State(); got != tt.want {
					t.Errorf("state %s, want %s", got, tt.want)
				}
				time.Sleep(time.Minute) // go-resiliency's timer ends
			})
		})
	}
}

func TestLocalHalfOpenAdmitsOneCallerAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocal(t)
		trip(l)
		require.Equal(t, 5*time.Second, refused(t, l.Run(succeed), breaker.Open))
		time.Sleep(5 * time.Second)
		synctest.Wait()

		var ran atomic.Int64
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				_ = l.Run(func() error { ran.Add(1); time.Sleep(time.Second); return nil })
			})
		}
		wg.Wait()
		require.Equal(t, int64(1), ran.Load())
		require.Equal(t, breaker.HalfOpen, l.State())
		require.NoError(t, l.Run(succeed))
		require.NoError(t, l.Run(succeed))
		require.Equal(t, breaker.Closed, l.State())
	})
}

func TestLocalProbe(t *testing.T) {
	tests := []struct {
		name string
		work func() error
		want breaker.State
	}{
		{"a failure reopens", fail, breaker.Open},
		{"a success alone does not close", succeed, breaker.HalfOpen},
		{"a caller that gave up says nothing", func() error { return context.Canceled }, breaker.HalfOpen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLocal(t)
				trip(l)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				_ = l.Run(tt.work)
				if got := l.State(); got != tt.want {
					t.Errorf("state %s, want %s", got, tt.want)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestLocalPanicFreesTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocal(t)
		trip(l)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.PanicsWithValue(t, "bug", func() { _ = l.Run(func() error { panic("bug") }) })
		require.NoError(t, l.Run(succeed))
	})
}
