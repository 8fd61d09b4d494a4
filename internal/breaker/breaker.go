// Package breaker refuses calls to an upstream that keeps failing.
//
// One call tells little, and one process sees few calls, so the verdict is the
// fleet's. [Shared] counts the outcomes of its own process in memory, folds
// them into Redis a few times a second, and one script there decides for
// everybody: closed (calls pass), open (all workers refuse), half-open (a few
// probes for the whole fleet find out whether the upstream is back). While the
// breaker is closed a call costs no Redis round trip.
//
// [Local] is the fuse of one process. Shared hands over to it while Redis
// cannot be reached and takes over again by itself afterwards.
package breaker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// State says what a breaker does with a call.
type State uint8

// The states. The zero value is Closed: a breaker that has seen nothing lets
// calls pass.
const (
	Closed   State = iota // calls pass
	Open                  // calls are refused until the open time is over
	HalfOpen              // a fixed number of probes pass, the rest is refused
)

// String returns "closed", "open" or "half-open".
func (s State) String() string { return nameOf(s, "closed", "open", "half-open") }

// nameOf is the i-th name, and a visible number for a value without one.
func nameOf[T ~uint8](i T, names ...string) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", uint8(i))
}

// shortWait is what a refused caller is told while the end of the refusal
// depends on somebody else's call and not on the clock.
const shortWait = time.Second

// OpenError reports a call that was refused: work did not run.
type OpenError struct {
	Name  string // the upstream
	State State  // Open or HalfOpen; Closed while the ramp holds a call back
	wait  time.Duration
}

// Error names the upstream, the state and the wait.
func (e *OpenError) Error() string {
	if e.State == Closed {
		return fmt.Sprintf("breaker: %s has just closed and admits only a share: retry after %v", e.Name, e.wait)
	}
	return fmt.Sprintf("breaker: %s is %s: retry after %v", e.Name, e.State, e.wait)
}

// RetryAfter is how long to wait before the next try; always positive. While
// the breaker is open it is the remaining open time, otherwise one second.
func (e *OpenError) RetryAfter() time.Duration { return e.wait }

// refusal is an OpenError with a wait of at least a millisecond, so that no
// caller spins on it.
func refusal(name string, state State, wait time.Duration) *OpenError {
	return &OpenError{Name: name, State: state, wait: max(wait, time.Millisecond).Round(time.Millisecond)}
}

// outcome is what a call says about the health of its upstream. The values of
// a probe's outcome are read by the script.
type outcome uint8

const (
	nothing   outcome = iota // the caller gave up, or work panicked
	healthy                  // work returned nil
	unhealthy                // work returned any other error
)

// judge turns work's error into an outcome.
func judge(err error) outcome {
	switch {
	case err == nil:
		return healthy
	case errors.Is(err, context.Canceled):
		return nothing
	default:
		return unhealthy
	}
}
