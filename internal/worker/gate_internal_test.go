package worker

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
)

// state is a breaker whose status the test sets.
type state struct {
	now atomic.Pointer[breaker.Status]
}

func (s *state) set(st breaker.Status) {
	s.now.Store(&st)
}

func (s *state) status() breaker.Status { return *s.now.Load() }

// enter starts n runs at a gate and returns how many are inside, and a function that lets all of those leave.
func enter(ctx context.Context, g *gate, n int) (inside *atomic.Int64, leave func()) {
	inside = new(atomic.Int64)
	out := make(chan struct{})
	for range n {
		go func() {
			leave, err := g.Enter(ctx)
			if err != nil {
				return
			}
			inside.Add(1)
			select {
			case <-out:
			case <-ctx.Done():
			}
			leave()
		}()
	}
	synctest.Wait()
	return inside, func() { close(out); synctest.Wait() }
}

func TestGate(t *testing.T) {
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	tests := []struct {
		name   string
		status func() breaker.Status
		want   int64 // of ten runs
	}{
		{"closed lets all pass", func() breaker.Status { return breaker.Status{Fleet: true} }, 10},
		{"open lets none pass", func() breaker.Status {
			return breaker.Status{Fleet: true, State: breaker.Open, OpenUntil: in(time.Minute)}
		}, 0},
		{"open whose time is over lets the probes pass", func() breaker.Status {
			return breaker.Status{Fleet: true, State: breaker.Open, OpenUntil: in(-time.Second)}
		}, 2},
		{"half-open lets the probes pass", func() breaker.Status { return breaker.Status{Fleet: true, State: breaker.HalfOpen} }, 2},
		{"forced open lets none pass", func() breaker.Status {
			return breaker.Status{Fleet: true, State: breaker.Open, Mode: breaker.ForceOpen}
		}, 0},
		{"without Redis the fuse decides", func() breaker.Status { return breaker.Status{State: breaker.Open, OpenUntil: in(time.Minute)} }, 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s state
				s.set(tt.status())
				inside, leave := enter(t.Context(), newGate(s.status, 2), 10)
				require.Equal(t, tt.want, inside.Load())
				leave()
			})
		})
	}
}

func TestGateOpensWithTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s state
		s.set(breaker.Status{Fleet: true, State: breaker.Open, OpenUntil: time.Now().Add(time.Hour)})
		g := newGate(s.status, 1)
		start := time.Now()
		inside, leave := enter(t.Context(), g, 10)
		require.Zero(t, inside.Load())
		s.set(breaker.Status{Fleet: true})
		g.notify()
		synctest.Wait()
		require.EqualValues(t, 10, inside.Load())
		require.Zero(t, time.Since(start), "at once, not at the next look")
		leave()
	})
}

func TestGateLetsTheNextProbePassAfterTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s state
		s.set(breaker.Status{Fleet: true, State: breaker.Open, OpenUntil: time.Now().Add(5 * time.Second)})
		g := newGate(s.status, 1)
		inside, leave := enter(t.Context(), g, 3)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, inside.Load(), "the time is over: one may try")
		leave()
		require.EqualValues(t, 3, inside.Load(), "one after the other")
	})
}

func TestGateEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s state
		s.set(breaker.Status{Fleet: true, State: breaker.Open, OpenUntil: time.Now().Add(time.Hour)})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(context.DeadlineExceeded)
		_, err := newGate(s.status, 1).Enter(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
