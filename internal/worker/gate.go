package worker

import (
	"context"
	"sync"
	"time"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// gate holds runs back while a breaker would refuse them. Without it each run would claim its job, be
// refused, and put the job back, which is some thirty Redis commands for nothing.
type gate struct {
	status func() breaker.Status
	probes chan struct{} // places for the runs that may try their luck while the breaker probes

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed, and replaced, when the breaker's state changes
}

var _ tasks.Gate = (*gate)(nil)

// newGate returns a gate that lets so many runs at a time try for a probe.
func newGate(status func() breaker.Status, probes int) *gate {
	return &gate{status: status, probes: make(chan struct{}, probes), changed: make(chan struct{})}
}

// notify wakes those who wait: the breaker has changed.
func (g *gate) notify() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) change() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// recheck bounds a wait whose end is not known.
const recheck = time.Second

// Enter returns at once while the breaker is closed. While it is open it waits; while it probes, only as
// many runs enter as there may be probes. What this process believes for want of Redis is no reason to
// hold anybody: the local fuse refuses by itself.
func (g *gate) Enter(ctx context.Context) (leave func(), err error) {
	for {
		changed := g.change() // before the status: a change in between is not missed
		s := g.status()
		if !s.Fleet || s.State == breaker.Closed {
			return func() {}, nil
		}
		wait, probes := recheck, g.probes
		if shut := shutFor(s); shut > 0 {
			wait, probes = shut, nil // not even probes
		}
		timer := time.NewTimer(wait)
		select {
		case probes <- struct{}{}:
			timer.Stop()
			return func() { <-g.probes }, nil
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
		timer.Stop()
	}
}

// shutFor is how long a breaker that is not closed lets nobody pass; 0: it probes, or is about to.
func shutFor(s breaker.Status) time.Duration {
	switch {
	case s.State != breaker.Open:
		return 0
	case s.Mode == breaker.ForceOpen:
		return recheck // until somebody says otherwise
	default:
		return max(0, time.Until(s.OpenUntil))
	}
}
