package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Config says when a Shared breaker opens and how it closes again. Zero fields
// take their default. Every worker of a fleet should have the same values: the
// script decides by those of the worker that asks.
type Config struct {
	// Name is the upstream; required. It is part of the Redis keys: letters,
	// digits and ._- up to 64.
	Name string

	Window   time.Duration // outcomes older than this are forgotten; default 10s, at least 100ms
	MinCalls int           // the ratios say nothing below this many calls in the window; default 20
	// FailureRatio is the share of failed calls that opens, in (0, 1]; default
	// 0.6. It is looked for in the whole Window and in its newest tenth to
	// seventh, so that many calls per second decide in one or two.
	FailureRatio float64
	// Margin keeps an upstream that fails at FailureRatio-Margin from opening
	// the breaker by bad luck: few calls must show a clearly higher ratio (4
	// standard deviations), many calls just FailureRatio. Default 0.1,
	// negative: no margin.
	Margin    float64
	SlowCall  time.Duration // a call this long is slow; default 0: nothing is. Costs two clock readings a call
	SlowRatio float64       // share of slow calls that opens, in (0, 1]; default 0.8
	// HardFailures is the number of failures that open at once when no success
	// came between them from any worker, as far as folds tell: a fold with a
	// success starts again at zero. Default 20, negative: never.
	HardFailures int

	OpenFor     time.Duration // first open time; doubles with each further trip; default 5s
	MaxOpenFor  time.Duration // longest open time; default 60s, or OpenFor if that is longer
	OpenJitter  float64       // open time varies by this share, in [0, 1); default 0.1, negative: none
	ForgetTrips time.Duration // closed this long, the next trip counts as the first; default 2*MaxOpenFor

	Probes      int           // concurrent probes of the whole fleet when half-open; default 1
	ProbeLease  time.Duration // a probe whose process died is given up after this; default 5s, or 2*Poll, its least, if that is longer
	PermitEvery time.Duration // a process asks at most this often for a probe permit; default 250ms
	Successes   int           // healthy probes that close, if the failed share of the probes stays below FailureRatio; default 3
	Ramp        time.Duration // after closing, the admitted share grows from a tenth to all in this time; default 5s, negative: at once

	FoldEvery time.Duration // outcomes go to Redis this often, if there are any; default 100ms, at most Window/2
	Poll      time.Duration // the verdict is read at least this often; default 1s
	Grace     time.Duration // Redis silent for this long: the local fuse decides; default 1s

	Local LocalConfig // the fuse while Redis is gone; its Name is set

	// OnChange is called for each change this process sees, in order and one
	// at a time. It must return soon and must not call Run or Override.
	OnChange func(Change)
	Logger   *slog.Logger // one line per change; default: discards
}

// LocalConfig says when a Local breaker opens and how it closes again. Zero
// fields take their default.
type LocalConfig struct {
	Name      string        // the upstream; only for messages
	Failures  int           // consecutive failures that open; default 20
	Successes int           // healthy probes that close; default 3
	OpenFor   time.Duration // default 5s
}

// WithDefaults returns c with every zero field set.
func (c Config) WithDefaults() Config {
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.MinCalls = cmp.Or(c.MinCalls, 20)
	c.FailureRatio = cmp.Or(c.FailureRatio, 0.6)
	c.Margin = cmp.Or(c.Margin, 0.1)
	c.SlowRatio = cmp.Or(c.SlowRatio, 0.8)
	c.HardFailures = cmp.Or(c.HardFailures, 20)
	c.OpenFor = cmp.Or(c.OpenFor, 5*time.Second)
	c.MaxOpenFor = cmp.Or(c.MaxOpenFor, max(60*time.Second, c.OpenFor))
	c.OpenJitter = cmp.Or(c.OpenJitter, 0.1)
	c.ForgetTrips = cmp.Or(c.ForgetTrips, 2*c.MaxOpenFor)
	c.Probes = cmp.Or(c.Probes, 1)
	c.PermitEvery = cmp.Or(c.PermitEvery, 250*time.Millisecond)
	c.Successes = cmp.Or(c.Successes, 3)
	c.Ramp = cmp.Or(c.Ramp, 5*time.Second)
	c.FoldEvery = cmp.Or(c.FoldEvery, 100*time.Millisecond)
	c.Poll = cmp.Or(c.Poll, time.Second)
	c.ProbeLease = cmp.Or(c.ProbeLease, max(5*time.Second, 2*c.Poll))
	c.Grace = cmp.Or(c.Grace, time.Second)
	c.Local.Name = c.Name
	c.Local = c.Local.WithDefaults()
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c
}

// WithDefaults returns c with every zero field set.
func (c LocalConfig) WithDefaults() LocalConfig {
	c.Name = cmp.Or(c.Name, "upstream")
	c.Failures = cmp.Or(c.Failures, 20)
	c.Successes = cmp.Or(c.Successes, 3)
	c.OpenFor = cmp.Or(c.OpenFor, 5*time.Second)
	return c
}

// A name is part of a Redis key and of its hash tag, so braces stay out.
const namePattern = `^[A-Za-z0-9._-]{1,64}$`

// Validate names every field that is out of range. Zero fields count as their
// default.
func (c Config) Validate() error {
	c = c.WithDefaults()
	var p problems
	named, _ := regexp.MatchString(namePattern, c.Name) // the pattern is a constant that compiles
	p.unless(named, "name: %q is not 1 to 64 letters, digits or ._-", c.Name)
	p.unless(c.Window >= 100*time.Millisecond, "window: %v is below 100ms", c.Window)
	p.unless(c.MinCalls >= 1, "min_calls: %d is below 1", c.MinCalls)
	p.unless(isShare(c.FailureRatio), "failure_ratio: %v is not in (0, 1]", c.FailureRatio)
	p.unless(c.Margin < 1, "margin: %v is not below 1", c.Margin)
	p.unless(isShare(c.SlowRatio), "slow_ratio: %v is not in (0, 1]", c.SlowRatio)
	p.unless(c.SlowCall >= 0, "slow_call: %v is negative", c.SlowCall)
	c.validateOpen(&p)
	c.validateExchange(&p)
	return errors.Join(append(p, c.Local.Validate())...)
}

func (c Config) validateOpen(p *problems) {
	p.unless(c.OpenFor >= time.Millisecond, "open_for: %v is below 1ms", c.OpenFor)
	p.unless(c.MaxOpenFor >= c.OpenFor, "max_open_for: %v is below open_for %v", c.MaxOpenFor, c.OpenFor)
	p.unless(c.OpenJitter < 1, "open_jitter: %v is not below 1", c.OpenJitter)
	p.unless(c.ForgetTrips > 0, "forget_trips: %v is not positive", c.ForgetTrips)
	p.unless(c.Probes >= 1, "probes: %d is below 1", c.Probes)
	p.unless(c.Successes >= 1, "successes: %d is below 1", c.Successes)
}

func (c Config) validateExchange(p *problems) {
	p.unless(c.FoldEvery >= time.Millisecond && c.FoldEvery <= c.Window/2, "fold_every: %v is not in [1ms, %v], half the window", c.FoldEvery, c.Window/2)
	p.unless(c.Poll >= time.Millisecond, "poll: %v is below 1ms", c.Poll)
	p.unless(c.ProbeLease >= 2*c.Poll, "probe_lease: %v is below twice the poll of %v that renews it", c.ProbeLease, c.Poll)
	p.unless(c.PermitEvery > 0, "permit_every: %v is not positive", c.PermitEvery)
	p.unless(c.Grace > 0, "grace: %v is not positive", c.Grace)
}

// Validate names every field that is out of range. Zero fields count as their
// default.
func (c LocalConfig) Validate() error {
	c = c.WithDefaults()
	var p problems
	p.unless(c.Failures >= 1, "local.failures: %d is below 1", c.Failures)
	p.unless(c.Successes >= 1, "local.successes: %d is below 1", c.Successes)
	p.unless(c.OpenFor >= time.Millisecond, "local.open_for: %v is below 1ms", c.OpenFor)
	return errors.Join(p...)
}

func isShare(ratio float64) bool { return ratio > 0 && ratio <= 1 }

// problems collects what is wrong, so that one look shows all of it.
type problems []error

func (p *problems) unless(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Errorf("breaker: "+format, args...))
	}
}
