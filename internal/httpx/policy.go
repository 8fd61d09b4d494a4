package httpx

import (
	"errors"
	"fmt"
	"time"
)

// UnknownOutcome says what to do after an attempt that may have taken effect without an answer.
type UnknownOutcome uint8

// The choices. Repeat is the zero value: a repeated completion costs money once more, a lost one costs the answer.
const (
	Repeat UnknownOutcome = iota // try again, with the same Idempotency-Key
	GiveUp                       // end the call; the error is Permanent with OutcomeUnknown set
)

var unknownNames = [...]string{"repeat", "give_up"}

// String returns "repeat" or "give_up".
func (u UnknownOutcome) String() string {
	if int(u) < len(unknownNames) {
		return unknownNames[u]
	}
	return fmt.Sprintf("unknown_outcome(%d)", uint8(u))
}

// MarshalText implements [encoding.TextMarshaler].
func (u UnknownOutcome) MarshalText() ([]byte, error) {
	return marshalName("unknown outcome", unknownNames[:], int(u))
}

// UnmarshalText implements [encoding.TextUnmarshaler]. It fails for a name that String never returns.
func (u *UnknownOutcome) UnmarshalText(text []byte) error {
	i, err := unmarshalName("unknown outcome", unknownNames[:], string(text))
	*u = UnknownOutcome(i)
	return err
}

// Policy says how hard one call may try. The zero value of a field means its default;
// a negative FirstByte, Idle, Attempt or Total switches that limit off.
type Policy struct {
	MaxAttempts int            `yaml:"max_attempts"` // attempts per call, hedges included; default 3
	Backoff     Backoff        `yaml:"backoff"`      // waits between attempts
	MaxInline   time.Duration  `yaml:"max_inline"`   // longest wait held in process; a longer one is handed to the caller; default 2s
	MaxHint     time.Duration  `yaml:"max_hint"`     // cap on a wait the upstream asks for; default 1h
	FirstByte   time.Duration  `yaml:"first_byte"`   // attempt start (dialling included) to response header; default 2m
	Idle        time.Duration  `yaml:"idle"`         // silence inside a response body; default 1m
	Attempt     time.Duration  `yaml:"attempt"`      // one attempt; default 5m
	Total       time.Duration  `yaml:"total"`        // the call with its attempts and waits; default 10m
	Unknown     UnknownOutcome `yaml:"unknown"`      // after an unknown outcome; default repeat
	Hedge       Hedge          `yaml:"hedge"`        // off by default
}

// WithDefaults returns p with each zero field replaced by its default. A default never contradicts
// a limit that was set: Attempt stays within Total and FirstByte within Attempt.
func (p Policy) WithDefaults() Policy {
	p.MaxAttempts = orDefault(p.MaxAttempts, 3)
	p.Backoff = p.Backoff.WithDefaults()
	p.MaxInline = orDefault(p.MaxInline, 2*time.Second)
	p.MaxHint = orDefault(p.MaxHint, time.Hour)
	p.Total = orDefault(p.Total, max(10*time.Minute, p.Attempt))
	p.Attempt = orDefault(p.Attempt, within(5*time.Minute, p.Total))
	p.FirstByte = orDefault(p.FirstByte, within(2*time.Minute, p.Attempt))
	p.Idle = orDefault(p.Idle, time.Minute)
	p.Hedge = p.Hedge.withDefaults()
	return p
}

// Validate returns every problem of p at once, each starting with the key of the field, or nil.
// It expects a policy that WithDefaults has completed.
func (p Policy) Validate() error {
	var errs []error
	if p.MaxAttempts < 1 || p.MaxAttempts > 100 {
		errs = append(errs, fmt.Errorf("max_attempts: %d is not between 1 and 100", p.MaxAttempts))
	}
	if p.MaxInline < 0 {
		errs = append(errs, fmt.Errorf("max_inline: %s is negative", p.MaxInline))
	}
	if p.MaxHint < 0 {
		errs = append(errs, fmt.Errorf("max_hint: %s is negative", p.MaxHint))
	}
	if p.Total > 0 && p.Attempt > p.Total {
		errs = append(errs, fmt.Errorf("attempt: %s is above total %s", p.Attempt, p.Total))
	}
	if p.Attempt > 0 && p.FirstByte > p.Attempt {
		errs = append(errs, fmt.Errorf("first_byte: %s is above attempt %s", p.FirstByte, p.Attempt))
	}
	if int(p.Unknown) >= len(unknownNames) {
		errs = append(errs, fmt.Errorf("unknown: %s is not one of repeat, give_up", p.Unknown))
	}
	return errors.Join(errors.Join(errs...), p.Backoff.Validate(), p.Hedge.validate())
}

// Presets returns a policy per kind of endpoint, complete and valid: a fresh map on each call.
//
//   - "chat": somebody waits. Few fast tries, then back to the queue.
//   - "generate": long single completions. The same tries, longer limits.
//   - "embeddings": short answers, no side effects worth fearing. More tries, tight limits.
//   - "batch": nobody waits. Patient in every way.
func Presets() map[string]Policy {
	return map[string]Policy{
		"chat": Policy{
			MaxAttempts: 3,
			Backoff:     Backoff{Base: 250 * time.Millisecond, Max: 5 * time.Second},
			FirstByte:   time.Minute, Idle: 30 * time.Second, Attempt: 3 * time.Minute, Total: 5 * time.Minute,
		}.WithDefaults(),
		"generate": Policy{
			MaxAttempts: 3,
			Backoff:     Backoff{Base: 500 * time.Millisecond, Max: 10 * time.Second},
			FirstByte:   3 * time.Minute, Attempt: 10 * time.Minute, Total: 15 * time.Minute,
		}.WithDefaults(),
		"embeddings": Policy{
			MaxAttempts: 4,
			Backoff:     Backoff{Base: 250 * time.Millisecond, Max: 10 * time.Second},
			FirstByte:   30 * time.Second, Idle: 15 * time.Second, Attempt: time.Minute, Total: 3 * time.Minute,
		}.WithDefaults(),
		"batch": Policy{
			MaxAttempts: 5,
			Backoff:     Backoff{Base: time.Second, Max: time.Minute},
			MaxInline:   5 * time.Second,
			FirstByte:   10 * time.Minute, Idle: 2 * time.Minute, Attempt: 20 * time.Minute, Total: time.Hour,
		}.WithDefaults(),
	}
}

// orDefault returns v, or def when v is the zero value.
func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// within returns d, or limit when that is on and shorter.
func within(d, limit time.Duration) time.Duration {
	if limit > 0 {
		return min(d, limit)
	}
	return d
}
