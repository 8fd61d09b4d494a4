package breaker

import (
	"context"
	crand "crypto/rand"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// rampStart is the share of calls admitted at the moment of closing.
const rampStart = 0.1

// Shared is a circuit breaker for one upstream with one verdict for the whole
// fleet, kept in Redis. Each process has one Shared per upstream and one
// running [Shared.Sync]; until Sync has heard from Redis, and while Redis is
// silent for longer than Config.Grace, a [Local] fuse decides. What the fleet
// had decided before still holds then: an operator's override, and an open
// time that is not over.
//
// It opens on a failure ratio over a sliding window, on a ratio of slow calls,
// or on a run of failures without a success anywhere. It is safe for
// concurrent use.
type Shared struct {
	rdb   redis.UniversalClient
	cfg   Config
	rnd   func() float64 // in [0, 1)
	start time.Time      // what is counted as a time.Duration counts from here

	view    atomic.Pointer[view]
	wake    chan struct{} // asks Sync to exchange with Redis at once
	syncing atomic.Bool   // Sync runs
	nextAsk atomic.Int64  // no permit is asked for before this; time.Duration since start
	silence atomic.Int64  // the oldest question without an answer since; 0: none

	tokens string       // prefix of the tokens of probes, unique to this Shared
	issued atomic.Int64 // tokens so far

	mu        sync.Mutex          // guards replacing view, fuseState, held; orders OnChange
	fuseState State               // last reported
	held      map[string]struct{} // tokens of the probes in flight here
}

// view is what Run decides by. It is replaced, never changed.
type view struct {
	status  Status // State is the fuse's only through Shared.Status
	epoch   int64  // version of the verdict; 0 before the first
	applied time.Time
	free    bool // closed and no ramp: every call passes
	tally   *tally
	fuse    *Local // decides while Redis is silent; nil else
}

// New returns a breaker that knows nothing yet and lets its fuse decide until
// Sync runs. It fails when cfg does not validate. rdb should honor contexts
// (redis.Options.ContextTimeoutEnabled), else a stalled Redis holds a caller
// that asks for a probe permit as long as the client's own timeouts.
func New(rdb redis.UniversalClient, cfg Config) (*Shared, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b := &Shared{
		rdb:    rdb,
		cfg:    cfg,
		rnd:    rand.Float64,
		start:  time.Now(),
		wake:   make(chan struct{}, 1),
		held:   make(map[string]struct{}),
		tokens: crand.Text(),
	}
	b.view.Store(&view{
		status: Status{Name: cfg.Name, Since: b.start},
		tally:  new(tally),
		fuse:   newLocal(cfg.Local),
	})
	return b, nil
}

// Run runs work as one attempt and returns its error as is, or refuses with an
// *OpenError without running it. Nil is a success, an error matching
// context.Canceled says nothing about the upstream, any other error is a
// failure: the caller leaves out those that are not the upstream's fault. A
// panic in work passes through and says nothing.
//
// Only a caller that takes a probe permit waits for Redis.
func (b *Shared) Run(work func() error) error {
	v := b.view.Load()
	if v.free {
		return b.observe(v, work)
	}
	return b.runGuarded(v, work)
}

// runGuarded is Run for every case but the plain closed one.
func (b *Shared) runGuarded(v *view, work func() error) error {
	now := time.Now()
	switch s := &v.status; {
	case s.Mode == ForceOpen:
		return b.refuse(Open, b.cfg.OpenFor)
	case s.Mode == ForceClosed:
		return b.observe(v, work)
	case now.Before(s.OpenUntil):
		return b.refuse(Open, s.OpenUntil.Sub(now))
	case v.fuse != nil:
		return v.fuse.Run(work)
	case s.State == Closed:
		return b.runRamp(v, now, work)
	default:
		return b.tryProbe(now, work)
	}
}

func (b *Shared) refuse(state State, wait time.Duration) error {
	return refusal(b.cfg.Name, state, wait)
}

// observe runs work and counts its outcome for the next fold.
func (b *Shared) observe(v *view, work func() error) error {
	began := b.clock()
	err := work()
	if run := v.tally.add(judge(err), b.isSlow(began)); run > 0 {
		b.noteRun(run)
	}
	return err
}

// noteRun folds a long run of failures at once. The first fold may still hold
// successes from before the run; the next, a run later, holds none and opens.
func (b *Shared) noteRun(run int64) {
	if hard := int64(b.cfg.HardFailures); hard > 0 && run%hard == 0 {
		b.exchangeSoon()
	}
}

// clock reads the time if anybody wants to know how long a call took.
func (b *Shared) clock() time.Time {
	if b.cfg.SlowCall == 0 {
		return time.Time{}
	}
	return time.Now()
}

func (b *Shared) isSlow(began time.Time) bool {
	return b.cfg.SlowCall > 0 && time.Since(began) >= b.cfg.SlowCall
}

// runRamp admits a share of the calls that grows to all.
func (b *Shared) runRamp(v *view, now time.Time, work func() error) error {
	left := v.status.RampEnd.Sub(now)
	if left > 0 && b.rnd() >= 1-(1-rampStart)*float64(left)/float64(b.cfg.Ramp) {
		return b.refuse(Closed, min(left, shortWait))
	}
	return b.observe(v, work)
}

// tryProbe asks for a permit, at most once per Config.PermitEvery, and runs
// work with it.
func (b *Shared) tryProbe(now time.Time, work func() error) error {
	if !b.mayAsk(now) {
		return b.refuse(HalfOpen, shortWait)
	}
	token := b.tokens + "-" + strconv.FormatInt(b.issued.Add(1), 36)
	d, err := b.ask(context.Background(), opPermit, token)
	if err != nil { // Sync finds out by itself that Redis is gone
		return b.refuse(HalfOpen, shortWait)
	}
	v := b.apply(d)
	switch {
	case d.granted:
		return b.runProbe(token, d.epoch, work)
	case v.status.State == Closed, v.status.State == Open:
		return b.runGuarded(v, work) // at most one more round: mayAsk says no
	default:
		return b.refuse(HalfOpen, shortWait)
	}
}

// mayAsk is true for one caller per Config.PermitEvery.
func (b *Shared) mayAsk(now time.Time) bool {
	at, next := int64(now.Sub(b.start)), b.nextAsk.Load()
	return at >= next && b.nextAsk.CompareAndSwap(next, at+int64(b.cfg.PermitEvery))
}

// runProbe runs work with a permit and tells the fleet how it went. Sync
// renews the lease meanwhile.
func (b *Shared) runProbe(token string, epoch int64, work func() error) error {
	b.hold(token)
	o := nothing
	defer func() { b.settle(token, epoch, o) }() // also when work panics
	began := b.clock()
	err := work()
	o = judge(err)
	if o == healthy && b.isSlow(began) {
		o = unhealthy // closing for it would only trip again
	}
	return err
}

func (b *Shared) hold(token string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[token] = struct{}{}
}

// holding are the tokens whose leases need renewal.
func (b *Shared) holding() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.held))
}

func (b *Shared) settle(token string, epoch int64, o outcome) {
	b.mu.Lock()
	delete(b.held, token)
	b.mu.Unlock()
	d, err := b.ask(context.Background(), opSettle, token, epoch, uint8(o))
	if err != nil {
		return // Redis is gone: the lease expires, and another probe finds out
	}
	b.apply(d)
	b.nextAsk.Store(0) // the next probe need not wait
}

// Override sets an operator's mode for the fleet; it is kept in Redis until
// the next Override. Going back to Auto closes the breaker and forgets the
// past. It fails when Redis does. It needs no Sync: a process that makes no
// calls may override.
func (b *Shared) Override(ctx context.Context, mode Mode) error {
	d, err := b.ask(ctx, opOverride, uint8(mode))
	if err != nil {
		return err
	}
	if b.syncing.Load() { // else the verdict would never be renewed here: the fuse stays in charge
		b.apply(d)
	}
	return nil
}

// Fetch reads the fleet's verdict from Redis, in one round trip of at most
// Config.Grace, and fails when Redis does. It needs no Sync and changes
// nothing, neither here nor in Redis: it is for a process that shows an
// upstream and makes no calls. Of the Config only Name, Window and Grace
// matter. Where no worker runs, an open time that is over still shows as Open,
// with no time left.
func (b *Shared) Fetch(ctx context.Context) (Status, error) {
	d, err := b.ask(ctx, opRead)
	if err != nil {
		return Status{}, err
	}
	return d.status(b.cfg.Name, time.Now()), nil
}

// Status is what Run decides by at this moment. It asks nobody.
func (b *Shared) Status() Status { return b.view.Load().now() }

// now is v's status, with the fuse's state where the fuse decides.
func (v *view) now() Status {
	s := v.status
	if v.fuse != nil && s.Mode == Auto && !time.Now().Before(s.OpenUntil) {
		s.State = v.fuse.State()
		s.OpenUntil = time.Time{}
	}
	return s
}
