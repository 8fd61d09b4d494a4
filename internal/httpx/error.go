package httpx

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Error is how a call ends without a usable answer. Every error of [Client.Do] is one.
//
// Its text holds class, reason and waits only: neither upstream text nor headers nor the URL, so it may be logged and
// stored. The cause is available to errors.Is and errors.As.
type Error struct {
	Class          Class         // of the last failure; Refused when it was not even sent
	Reason         string        // finer than Class, from a closed set: see docs/httpx.md
	Status         int           // HTTP status of the last attempt; 0 without a response
	Header         http.Header   // response header of the last attempt; nil without a response
	Body           []byte        // start of the last response body, at most 64 KiB; may hold the upstream's error envelope
	Wait           time.Duration // when a repeat makes sense, from now; 0 when it does not or nothing is known
	WaitReason     string        // where Wait comes from: "backoff", "retry_after", or the Reason of a refusal
	Stopped        string        // why the call went no further: one of the Stopped constants
	OutcomeUnknown bool          // some attempt may have taken effect although no answer came
	Attempts       []Attempt     // what was sent, in order of start; refused attempts are not among them

	cause error
}

// Why a call ended. Error.Stopped holds one of these.
const (
	StoppedFinal    = "final"            // the class is Permanent
	StoppedUnknown  = "outcome_unknown"  // the policy gives up after an unknown outcome
	StoppedAttempts = "attempts_spent"   // MaxAttempts reached
	StoppedInline   = "wait_above_limit" // the wait is longer than MaxInline
	StoppedTotal    = "total_spent"      // the wait or the attempt would pass Total or the caller's deadline
	StoppedBudget   = "budget_spent"     // the retry budget is empty
	StoppedRefused  = "refused"          // breaker, pool or a local limit refused
	StoppedCanceled = "canceled"         // the caller's context ended
)

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "httpx: %s: %s after %d attempts (%s)", e.Class, e.Reason, len(e.Attempts), e.Stopped)
	if e.Wait > 0 {
		fmt.Fprintf(&b, ", wait %s (%s)", e.Wait, e.WaitReason)
	}
	return b.String()
}

// Unwrap returns the cause: one of the Err values of this package, a network error, the breaker's refusal, or nil
// when the upstream answered with a status that says it all.
func (e *Error) Unwrap() error { return e.cause }

// The time limits, each with its own error. All satisfy net.Error with Timeout() true.
var (
	ErrDialTimeout      error = &timeoutError{"timeout_dial"}       // Pool.DialTimeout: no TCP connection
	ErrTLSTimeout       error = &timeoutError{"timeout_tls"}        // Pool.TLSTimeout: no TLS session
	ErrPoolTimeout      error = &timeoutError{"pool_exhausted"}     // Pool.Wait: no free place in the pool
	ErrFirstByteTimeout error = &timeoutError{"timeout_first_byte"} // Policy.FirstByte: no response header
	ErrIdleTimeout      error = &timeoutError{"timeout_idle"}       // Policy.Idle: silence inside the body
	ErrAttemptTimeout   error = &timeoutError{"timeout_attempt"}    // Policy.Attempt
	ErrTotalTimeout     error = &timeoutError{"timeout_total"}      // Policy.Total
)

// Failures that are not a matter of time.
var (
	ErrBadRequest   = errors.New("httpx: request cannot be sent")       // URL, method or header is malformed
	ErrBodyTooLarge = errors.New("httpx: response body above MaxBody")  // see Config.MaxBody
	ErrPartialBody  = errors.New("httpx: response body ends too early") // short, cut or broken inside
	ErrStream       = errors.New("httpx: stream refused by its reader") // Request.Stream returned an error
	ErrClosed       = errors.New("httpx: client is closed")             // Do after Close

	errHedgeLost = errors.New("httpx: another attempt answered first")
	errEnded     = errors.New("httpx: attempt ended") // cause of an attempt's context that nobody canceled
)

// timeoutError is a time limit that passed.
type timeoutError struct{ reason string }

func (e *timeoutError) Error() string { return "httpx: " + strings.ReplaceAll(e.reason, "_", " ") }
func (e *timeoutError) Timeout() bool { return true }

// Temporary makes it a net.Error; deprecated there, and nobody should ask.
func (e *timeoutError) Temporary() bool { return true }

// callerError says that the caller's context ended. It is a type of its own because matching is not enough: net's
// "i/o timeout" matches context.DeadlineExceeded too, and is no wish of the caller.
type callerError struct {
	ended error // context.Canceled or context.DeadlineExceeded
	cause error // context.Cause, often the same
}

func (e *callerError) Error() string   { return "httpx: the caller gave up: " + e.cause.Error() }
func (e *callerError) Unwrap() []error { return []error{e.ended, e.cause} }
