package breaker

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"
)

// Sync exchanges outcomes and verdicts with Redis until ctx ends, then returns
// nil. It returns only after its goroutines have; a client that ignores
// contexts delays that by its own timeouts. A second Sync at the same time is
// an error.
func (b *Shared) Sync(ctx context.Context) error {
	if !b.syncing.CompareAndSwap(false, true) {
		return errors.New("breaker: " + b.cfg.Name + ": Sync is already running")
	}
	defer b.syncing.Store(false)
	var wg sync.WaitGroup
	wg.Go(func() { b.exchangeLoop(ctx) })
	wg.Go(func() { b.listen(ctx) })
	b.watch(ctx)
	wg.Wait()
	return nil
}

// exchangeSoon makes the exchange loop run now instead of at its next tick.
func (b *Shared) exchangeSoon() {
	select {
	case b.wake <- struct{}{}:
	default: // asked already
	}
}

// exchangeLoop folds outcomes and polls the verdict.
func (b *Shared) exchangeLoop(ctx context.Context) {
	tick := time.NewTicker(b.cfg.FoldEvery)
	defer tick.Stop()
	last := b.exchange(ctx, b.view.Load(), counts{})
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-b.wake:
			asked = true
		}
		v := b.view.Load()
		var c counts
		if v.fuse == nil { // else the fuse counts
			c = v.tally.take()
		}
		if asked || c != (counts{}) || b.pollDue(v, last) {
			last = b.exchange(ctx, v, c)
		}
	}
}

// pollDue says whether there is a reason to ask without anything to tell.
func (b *Shared) pollDue(v *view, last time.Time) bool {
	now := time.Now()
	switch {
	case now.Sub(last) >= b.cfg.Poll:
		return true
	case v.fuse != nil:
		return false
	case b.silence.Load() != 0: // a short gap: try again before the fuse must take over
		return true
	default: // the open time is over: see half-open when it begins
		until := v.status.OpenUntil
		return !until.IsZero() && last.Before(until) && !now.Before(until)
	}
}

// exchange tells Redis what happened here under v, applies what it answers,
// and returns the time it began. Outcomes that Redis did not hear of are lost:
// they are statistics, and a repetition might count them twice.
func (b *Shared) exchange(ctx context.Context, v *view, c counts) time.Time {
	now := time.Now()
	b.silence.CompareAndSwap(0, int64(now.Sub(b.start))+1)
	args := []any{v.epoch, c.healthy, c.unhealthy, c.slow}
	for _, token := range b.holding() {
		args = append(args, token)
	}
	if d, err := b.ask(ctx, opFold, args...); err == nil {
		b.apply(d) // an error shows as silence: watch reports it once
	}
	return now
}

// listen wakes the exchange loop on each change that is news here. The
// client's subscription heals by itself; what it misses, the poll finds.
func (b *Shared) listen(ctx context.Context) {
	sub := b.rdb.Subscribe(ctx, channel(b.cfg.Name))
	defer sub.Close()
	changes := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-changes:
			if !ok {
				return
			}
			if epoch, err := strconv.ParseInt(m.Payload, 10, 64); err != nil || epoch > b.view.Load().epoch {
				b.exchangeSoon()
			}
		}
	}
}

// watch hands over to the fuse when Redis is silent for too long, and reports
// what the fuse does. It never waits for Redis itself.
func (b *Shared) watch(ctx context.Context) {
	tick := time.NewTicker(b.cfg.FoldEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.fallBack()
			b.reportFuse()
		}
	}
}

// fallBack puts the fuse in charge if Redis has been silent for Config.Grace.
func (b *Shared) fallBack() {
	since := b.silence.Load()
	if since == 0 || time.Since(b.start)-time.Duration(since) < b.cfg.Grace {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.view.Load()
	if old.status.Reason == RedisGone {
		return
	}
	s := Status{Name: b.cfg.Name, Mode: old.status.Mode, Reason: RedisGone, Since: time.Now()}
	if s.Mode == ForceOpen || s.Since.Before(old.status.OpenUntil) {
		s.State, s.OpenUntil = Open, old.status.OpenUntil
	}
	v := &view{status: s, epoch: old.epoch, tally: new(tally), fuse: newLocal(b.cfg.Local)}
	b.view.Store(v)
	b.fuseState = s.State
	b.reportLocked(Change{From: old.status.State, Status: s})
}

// reportFuse reports what the state is while the fuse is in charge.
func (b *Shared) reportFuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.view.Load()
	if v.fuse == nil {
		return
	}
	s := v.now()
	if s.State == b.fuseState {
		return
	}
	s.Reason = FuseMoved
	b.reportLocked(Change{From: b.fuseState, Status: s})
	b.fuseState = s.State
}

// apply makes d the view and returns the view. Replies may overtake each other:
// an older verdict loses, unless it was asked for after the newer one had
// arrived. Then Redis itself has gone back, as after a failover.
func (b *Shared) apply(d verdict) *view {
	b.silence.Store(0)
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.view.Load()
	if old.fuse == nil && d.epoch < old.epoch && !d.asked.After(old.applied) {
		return old
	}
	v := d.view(b.cfg.Name, time.Now())
	if v.tally = old.tally; old.fuse != nil || old.epoch != d.epoch {
		v.tally = new(tally)
	}
	b.view.Store(v)
	b.reportVerdictLocked(old, v)
	return v
}

// reportVerdictLocked reports a change of the verdict or its return. A breaker
// that is found closed at the start is no news.
func (b *Shared) reportVerdictLocked(old, v *view) {
	c := Change{From: old.now().State, Status: v.status}
	switch {
	case old.fuse == nil && old.epoch == v.epoch:
		return
	case old.fuse == nil:
	case old.status.Reason == RedisGone:
		c.Reason = RedisBack
	case v.status.State == Closed:
		return
	}
	b.reportLocked(c)
}

func (b *Shared) reportLocked(c Change) {
	b.cfg.Logger.LogAttrs(context.Background(), c.level(), "breaker changed", c.attrs()...)
	if b.cfg.OnChange != nil {
		b.cfg.OnChange(c)
	}
}

// view is d as seen at now, without a tally.
func (d verdict) view(name string, now time.Time) *view {
	return &view{
		status:  d.status(name, now),
		epoch:   d.epoch,
		applied: now,
		free:    d.state == Closed && d.rampLeft == 0,
	}
}

// status is d as seen at now by the local clock. The reply took a moment to
// arrive, so ends computed here come late, never early.
func (d verdict) status(name string, now time.Time) Status {
	s := Status{
		Name: name, State: d.state, Mode: d.mode, Reason: d.reason, Fleet: true, Since: now.Add(-d.age),
		Calls: d.calls, Failures: d.failures, Slow: d.slow, Consecutive: d.run,
		Trips: d.trips, Probes: d.probes, ProbeSuccesses: d.probeSuccesses, ProbeFailures: d.probeFailures,
	}
	if d.state == Open && d.mode == Auto {
		s.OpenUntil = now.Add(d.reopenIn)
	}
	if d.state == Closed && d.rampLeft > 0 {
		s.RampEnd = now.Add(d.rampLeft)
	}
	return s
}
