package breaker

import (
	"fmt"
	"log/slog"
	"time"
)

// Mode is an operator's say over the verdict.
type Mode uint8

// The modes. The zero value is Auto: no operator has spoken.
const (
	Auto        Mode = iota // the numbers decide
	ForceOpen               // every call is refused
	ForceClosed             // every call passes, whatever the numbers
)

// String returns "auto", "open" or "close".
func (m Mode) String() string { return nameOf(m, "auto", "open", "close") }

// ParseMode reads what Mode.String writes.
func ParseMode(name string) (Mode, error) {
	for m := Auto; m <= ForceClosed; m++ {
		if m.String() == name {
			return m, nil
		}
	}
	return Auto, fmt.Errorf("breaker: mode %q is not auto, open or close", name)
}

// Reason says why a state began.
type Reason uint8

// The reasons. The zero value is that of a breaker that never changed.
const (
	NoReason      Reason = iota
	FailureRatio         // failed calls reached Config.FailureRatio
	SlowRatio            // slow calls reached Config.SlowRatio
	HardFailures         // Config.HardFailures in a row
	ProbeFailed          // the first probe was unhealthy, or too many were
	ProbesHealthy        // Config.Successes probes were healthy
	OpenTimeOver         // time for probes
	Operator             // Override
	RedisGone            // Redis silent for Config.Grace: the local fuse decides
	RedisBack            // the fleet's verdict counts again
	FuseMoved            // the local fuse changed its state
)

// String returns the name used in logs and metrics, such as "failure_ratio".
func (r Reason) String() string {
	return nameOf(r, "none", "failure_ratio", "slow_ratio", "hard_failures", "probe_failed", "probes_healthy",
		"open_time_over", "operator", "redis_gone", "redis_back", "fuse_moved")
}

// Status is what this process knows of the verdict. It is at most Config.Poll
// old while Redis answers.
type Status struct {
	Name      string
	State     State
	Mode      Mode
	Reason    Reason    // why State began
	Fleet     bool      // false: Redis is not heard, State is the local fuse's
	Since     time.Time // when State began
	OpenUntil time.Time // when probes begin; zero unless open by the numbers
	RampEnd   time.Time // until then only a growing share passes; zero without a ramp

	// The window while closed, else the numbers that decided.
	Calls, Failures, Slow int64
	Consecutive           int64 // failures in a row, as far as folds tell

	// Openings without Config.ForgetTrips of rest between them; each doubled the
	// open time. One after a period with a healthy probe is left out.
	Trips  int64
	Probes int64 // in flight in the fleet

	// Probes that ended, of this half-open period or of the one that led to
	// State. Config.Successes close.
	ProbeSuccesses, ProbeFailures int64
}

// FailureRatio is the failed share of Calls, 0 without calls.
func (s Status) FailureRatio() float64 {
	if s.Calls == 0 {
		return 0
	}
	return float64(s.Failures) / float64(s.Calls)
}

// Change is one step of the verdict as this process saw it. A process that
// looks late sees several steps as one.
type Change struct {
	From State
	Status
}

// level: an operator looks for what refuses calls.
func (c Change) level() slog.Level {
	if c.State == Open || c.Reason == RedisGone {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// attrs are the numbers that decided.
func (c Change) attrs() []slog.Attr {
	attrs := []slog.Attr{
		slog.String("upstream", c.Name),
		slog.String("from", c.From.String()),
		slog.String("to", c.State.String()),
		slog.String("reason", c.Reason.String()),
		slog.Int64("calls", c.Calls),
		slog.Int64("failures", c.Failures),
		slog.Int64("slow", c.Slow),
		slog.Int64("consecutive", c.Consecutive),
		slog.Int64("trips", c.Trips),
		slog.Int64("probe_successes", c.ProbeSuccesses),
		slog.Int64("probe_failures", c.ProbeFailures),
	}
	if !c.OpenUntil.IsZero() {
		attrs = append(attrs, slog.Int64("open_for_ms", c.OpenUntil.Sub(c.Since).Milliseconds()))
	}
	return attrs
}
