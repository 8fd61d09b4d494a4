package breaker

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/eapache/go-resiliency/breaker"
)

// errUnhealthy is what Local tells go-resiliency's breaker about a run of
// failures; it never leaves this package.
var errUnhealthy = errors.New("breaker: unhealthy")

// Local is a circuit breaker for one process, on top of go-resiliency's.
//
// That breaker has two properties which make it a poor judge alone. It counts
// failures without an error-free period, not in a row: at a high call rate
// 0.55 % of failing calls opened it. And when half-open it lets every
// concurrent caller through. So Local counts consecutive failures itself and
// reports only a full run of them (its threshold is 1), and it keeps a gate of
// its own in front of half-open: one probe at a time. State, timer and the
// count of successes are the library's. The library ends its timer goroutine
// by itself, OpenFor after opening.
//
// Local is safe for concurrent use.
type Local struct {
	cfg      LocalConfig
	fuse     *breaker.Breaker
	start    time.Time    // opened counts from here, on the monotonic clock
	opened   atomic.Int64 // when it opened last; time.Duration since start
	failures atomic.Int64 // consecutive, while closed
	probing  atomic.Bool  // a probe runs
}

// NewLocal returns a closed fuse. It fails when cfg does not validate.
func NewLocal(cfg LocalConfig) (*Local, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return newLocal(cfg), nil
}

// newLocal needs a valid cfg with its defaults.
func newLocal(cfg LocalConfig) *Local {
	return &Local{cfg: cfg, fuse: breaker.New(1, cfg.Successes, cfg.OpenFor), start: time.Now()}
}

// State is the state at this moment.
func (l *Local) State() State {
	switch l.fuse.GetState() {
	case breaker.Open:
		return Open
	case breaker.HalfOpen:
		return HalfOpen
	default:
		return Closed
	}
}

// Run runs work and returns its error as is, or refuses with an *OpenError.
// Nil is a success, an error matching context.Canceled says nothing, any other
// error is a failure. A panic in work passes through and says nothing.
func (l *Local) Run(work func() error) error {
	switch l.State() {
	case Open:
		return l.refuse()
	case HalfOpen:
		return l.probe(work)
	default:
		err := work()
		l.count(judge(err))
		return err
	}
}

// count notes the outcome of a call that began while the fuse was closed.
func (l *Local) count(o outcome) {
	switch o {
	case healthy:
		if l.failures.Load() != 0 { // a plain load keeps the happy path free of contention
			l.failures.Store(0)
		}
	case unhealthy:
		if l.failures.Add(1) >= int64(l.cfg.Failures) && l.State() == Closed {
			l.report(errUnhealthy)
		}
	case nothing:
	}
}

// probe lets one caller through at a time.
func (l *Local) probe(work func() error) error {
	if !l.probing.CompareAndSwap(false, true) {
		return refusal(l.cfg.Name, HalfOpen, shortWait)
	}
	defer l.probing.Store(false)
	if l.State() == Open { // the probe before this one failed after our caller looked
		return l.refuse()
	}
	err := work()
	switch judge(err) {
	case healthy:
		l.report(nil)
	case unhealthy:
		l.report(errUnhealthy)
	case nothing:
	}
	return err
}

// report drives the library's state machine. What it returns is the verdict
// just given, or its own refusal when another report came first.
func (l *Local) report(verdict error) {
	if verdict != nil {
		l.opened.Store(int64(time.Since(l.start)))
	}
	l.failures.Store(0)
	_ = l.fuse.Run(func() error { return verdict })
}

func (l *Local) refuse() error {
	since := time.Since(l.start) - time.Duration(l.opened.Load())
	return refusal(l.cfg.Name, Open, l.cfg.OpenFor-since)
}
