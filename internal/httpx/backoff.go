package httpx

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Jitter says how chance spreads the waits of callers that failed together.
type Jitter uint8

// The kinds of jitter. See Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015),
// for what they do to a crowd of callers.
const (
	JitterUnset Jitter = iota // WithDefaults makes it JitterEqual; Wait treats it as JitterNone
	JitterNone                // exactly the step
	JitterFixed               // the step plus or minus the share Spread
	JitterFull                // anywhere between zero and the step
	JitterEqual               // anywhere between half the step and the step
)

var jitterNames = [...]string{"unset", "none", "fixed", "full", "equal"}

// String returns the kind in lower case.
func (j Jitter) String() string {
	if int(j) < len(jitterNames) {
		return jitterNames[j]
	}
	return fmt.Sprintf("jitter(%d)", uint8(j))
}

// MarshalText implements [encoding.TextMarshaler].
func (j Jitter) MarshalText() ([]byte, error) { return marshalName("jitter", jitterNames[:], int(j)) }

// UnmarshalText implements [encoding.TextUnmarshaler]. It fails for a name that String never returns.
func (j *Jitter) UnmarshalText(text []byte) error {
	i, err := unmarshalName("jitter", jitterNames[:], string(text))
	*j = Jitter(i)
	return err
}

// Backoff is a schedule of growing waits: step n is Base * Multiplier^(n-1), at most Max, spread by Jitter.
type Backoff struct {
	Base       time.Duration `yaml:"base"`       // wait before the first retry; default 500ms
	Max        time.Duration `yaml:"max"`        // longest wait, jitter included; default 30s
	Multiplier float64       `yaml:"multiplier"` // growth per retry, at least 1; default 2
	Jitter     Jitter        `yaml:"jitter"`     // none, fixed, full or equal; default equal
	Spread     float64       `yaml:"spread"`     // share for JitterFixed, between 0 and 1; default 0.25
}

// WithDefaults returns b with each zero field replaced by its default.
func (b Backoff) WithDefaults() Backoff {
	b.Base = orDefault(b.Base, 500*time.Millisecond)
	b.Max = orDefault(b.Max, max(30*time.Second, b.Base))
	b.Multiplier = orDefault(b.Multiplier, 2)
	b.Jitter = orDefault(b.Jitter, JitterEqual)
	if b.Jitter == JitterFixed {
		b.Spread = orDefault(b.Spread, 0.25)
	}
	return b
}

// Wait returns how long to wait before retry n, which counts from 1 (a smaller n counts as 1).
// rnd returns numbers in [0,1), like [math/rand/v2.Float64]. The result is between 0 and Max for every input.
func (b Backoff) Wait(n int, rnd func() float64) time.Duration {
	step := float64(b.Base) * math.Pow(b.Multiplier, float64(max(n, 1)-1))
	step = clamp(step, 0, float64(b.Max))
	switch b.Jitter {
	case JitterFixed:
		step *= 1 + b.Spread*(2*share(rnd)-1)
	case JitterFull:
		step *= share(rnd)
	case JitterEqual:
		step *= (1 + share(rnd)) / 2
	case JitterUnset, JitterNone:
	}
	return time.Duration(clamp(step, 0, float64(b.Max)))
}

// share is a draw from rnd that stays in [0,1] whatever rnd returns.
func share(rnd func() float64) float64 { return clamp(rnd(), 0, 1) }

// clamp returns x within [lo,hi]. NaN (0 * infinity, when Base is 0 and n is large) counts as lo.
func clamp(x, lo, hi float64) float64 {
	if math.IsNaN(x) {
		return lo
	}
	return min(max(x, lo), hi)
}

// Validate formats only what is wrong: it runs for each request that brings a policy.
func (b Backoff) Validate() error {
	var errs []error
	if b.Base < 0 {
		errs = append(errs, fmt.Errorf("backoff.base: %s is negative", b.Base))
	}
	if b.Max < b.Base {
		errs = append(errs, fmt.Errorf("backoff.max: %s is below base %s", b.Max, b.Base))
	}
	if !(b.Multiplier >= 1 && b.Multiplier <= 100) { // also for NaN
		errs = append(errs, fmt.Errorf("backoff.multiplier: %v is not between 1 and 100", b.Multiplier))
	}
	if !(b.Spread >= 0 && b.Spread <= 1) {
		errs = append(errs, fmt.Errorf("backoff.spread: %v is not between 0 and 1", b.Spread))
	}
	if int(b.Jitter) >= len(jitterNames) {
		errs = append(errs, fmt.Errorf("backoff.jitter: %s is not one of none, fixed, full, equal", b.Jitter))
	}
	return errors.Join(errs...)
}
