package httpx

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// watch holds the time limits of one attempt with a single timer: while a body flows, each read only notes the time, and
// the timer moves itself when it fires too early.
type watch struct {
	start                           time.Time
	firstByte, idle, attempt, total time.Duration // since start, idle since the last touch; forever when off
	touched                         atomic.Int64  // last sign of life since start; 0 before the response header
	cancel                          context.CancelCauseFunc

	mu    sync.Mutex // guards timer and armed
	timer *time.Timer
	armed time.Duration // when the timer fires next, since start
}

const forever = time.Duration(math.MaxInt64)

func (w *watch) begin(start time.Time, p *Policy, total time.Duration, cancel context.CancelCauseFunc) {
	w.start, w.cancel, w.total = start, cancel, total
	w.firstByte, w.idle, w.attempt = limitOf(p.FirstByte), limitOf(p.Idle), limitOf(p.Attempt)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, _ = w.next()
	w.timer = time.AfterFunc(w.armed, w.fire)
}

func limitOf(d time.Duration) time.Duration {
	if d < 0 {
		return forever
	}
	return d
}

// next returns the earliest limit since start and its error.
func (w *watch) next() (time.Duration, error) {
	d, err := w.firstByte, ErrFirstByteTimeout
	if t := time.Duration(w.touched.Load()); t > 0 {
		d, err = t+min(w.idle, forever-t), ErrIdleTimeout
	}
	if w.attempt < d {
		d, err = w.attempt, ErrAttemptTimeout
	}
	if w.total < d {
		d, err = w.total, ErrTotalTimeout
	}
	return d, err
}

func (w *watch) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return // ended
	}
	d, err := w.next()
	if time.Since(w.start) >= d {
		w.cancel(err)
		return
	}
	w.armLocked(d)
}

// hold stops Idle while somebody else than the upstream keeps the body waiting.
func (w *watch) hold() { w.touched.Store(int64(forever)) }

// resume starts Idle anew, after the response header or a hold. That may be an earlier limit than the timer is set for.
func (w *watch) resume() {
	w.touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	if d, _ := w.next(); d < w.armed {
		w.armLocked(d)
	}
}

// touch notes a sign of life inside the body.
func (w *watch) touch() { w.touched.Store(max(int64(time.Since(w.start)), 1)) }

func (w *watch) armLocked(d time.Duration) {
	w.armed = d
	w.timer.Reset(d - time.Since(w.start))
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.timer = nil
}
