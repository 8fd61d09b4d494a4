package httpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"
)

// call is one Client.Do.
type call struct {
	client   *Client
	req      Request
	policy   Policy
	url      *url.URL
	header   http.Header
	safe     bool // the method changes nothing upstream: no outcome is worth calling unknown
	start    time.Time
	attempts []Attempt
	pause    Wait // before the next attempt
	token    bool // a token of the budget is taken for an attempt that was not made yet
	response Response
}

// prepare completes the request, or says why it cannot be sent.
func (k *call) prepare() (err error) {
	if k.client.closed.Load() {
		return ErrClosed
	}
	if err := k.choosePolicy(); err != nil {
		return err
	}
	k.req.Method = orDefault(k.req.Method, http.MethodPost)
	k.safe = k.req.Method == http.MethodGet || k.req.Method == http.MethodHead || k.req.Method == http.MethodOptions
	k.header = k.req.Header
	if k.req.IdempotencyKey != "" {
		k.header = make(http.Header, len(k.req.Header)+1)
		maps.Copy(k.header, k.req.Header)
		k.header["Idempotency-Key"] = []string{k.req.IdempotencyKey}
	} else if k.header == nil {
		k.header = http.Header{}
	}
	if err := checkHeader(k.req.Method, k.header); err != nil {
		return err
	}
	k.url, err = parseURL(k.req.URL)
	return err
}

// choosePolicy takes the request's policy or the client's.
func (k *call) choosePolicy() error {
	k.policy = k.client.cfg.Policy
	if k.req.Policy != nil {
		k.policy = k.req.Policy.WithDefaults()
		if err := k.policy.Validate(); err != nil {
			return fmt.Errorf("%w: policy: %w", ErrBadRequest, err)
		}
	}
	if k.req.MaxAttempts > 0 {
		k.policy.MaxAttempts = min(k.policy.MaxAttempts, k.req.MaxAttempts)
	}
	return nil
}

// try is one turn of the retrier: the wait planned before, one attempt (with its hedge), and the plan after it.
func (k *call) try(ctx context.Context, retries int) error {
	if retries > 0 {
		k.client.cfg.Hooks.wait(ctx, k.pause)
		if err := sleep(ctx, k.pause.Duration); err != nil {
			return k.canceled(ctx)
		}
	}
	if ctx.Err() != nil {
		return k.canceled(ctx)
	}
	x := k.round(ctx)
	if x.refusal != nil {
		return k.refused(ctx, x)
	}
	k.account(x, retries)
	if x.verdict.Class == OK {
		k.succeed(ctx, x)
		return nil
	}
	return k.plan(ctx, x)
}

// account books an attempt that was made. A call earns its share of the budget with its first attempt, not by being
// refused; a retry that succeeds gets its token back.
func (k *call) account(x *exchange, retries int) {
	if retries == 0 {
		k.client.budget.earn(x.record.Start)
		return
	}
	k.token = false
	k.client.retries.Add(1)
	if x.verdict.Class == OK {
		k.client.budget.refund()
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func (k *call) succeed(ctx context.Context, x *exchange) {
	k.record(ctx, x)
	o := &x.outcome
	k.response = Response{Status: o.Status, Header: o.Header, Body: o.Body, Attempts: k.attempts}
}

// record enters a finished attempt into the ledger, which is in order of start: a hedge may end before the attempt that
// it should save.
func (k *call) record(ctx context.Context, x *exchange) {
	k.attempts = append(k.attempts, x.record)
	if n := len(k.attempts); n > 1 && k.attempts[n-1].Start.Before(k.attempts[n-2].Start) {
		k.attempts[n-1], k.attempts[n-2] = k.attempts[n-2], k.attempts[n-1]
	}
	k.client.cfg.Hooks.attempt(ctx, x.record)
}

// plan decides what follows a failed attempt: it returns the Error of that attempt, and leaves Stopped empty when
// another attempt is due after k.pause.
func (k *call) plan(ctx context.Context, x *exchange) *Error {
	e := &Error{
		Class: x.verdict.Class, Reason: x.verdict.Reason,
		Status: x.outcome.Status, Header: x.outcome.Header, Body: clip(x.outcome.Body), cause: x.outcome.Err,
	}
	n := len(k.attempts) + 1
	e.Wait, e.WaitReason = k.waitAfter(n, x.verdict)
	e.Stopped = k.stop(ctx, e, x.record.OutcomeUnknown, n)
	if e.Stopped == StoppedUnknown {
		e.Class = Permanent
	}
	if !e.Class.Retryable() {
		e.Wait, e.WaitReason = 0, ""
	}
	x.record.Wait, x.record.WaitReason = e.Wait, e.WaitReason
	k.record(ctx, x)
	k.pause = Wait{Attempt: n, Duration: e.Wait, Reason: e.WaitReason}
	return e
}

// waitAfter is the wait before the attempt that follows attempt n: the longer one of backoff and the upstream's wish.
func (k *call) waitAfter(n int, v Verdict) (time.Duration, string) {
	wait := k.policy.Backoff.Wait(n, k.client.cfg.Rand)
	if hint := min(v.Wait, k.policy.MaxHint); hint > wait {
		return hint, "retry_after"
	}
	return wait, "backoff"
}

// stop is the decision table: the first line that holds ends the call; "" is another attempt.
func (k *call) stop(ctx context.Context, e *Error, unknown bool, n int) string {
	switch {
	case e.Class == Canceled:
		return StoppedCanceled
	case e.Class == Refused:
		return StoppedRefused
	case !e.Class.Retryable():
		return StoppedFinal
	case unknown && k.policy.Unknown == GiveUp:
		return StoppedUnknown
	case errors.Is(e.cause, ErrTotalTimeout):
		return StoppedTotal
	case n >= k.policy.MaxAttempts:
		return StoppedAttempts
	case e.Wait > k.policy.MaxInline:
		return StoppedInline
	case !k.fits(ctx, e.Wait):
		return StoppedTotal
	case !k.client.budget.spend(): // last, so that only a retry that is due costs a token
		return StoppedBudget
	}
	k.token = true
	return ""
}

// fits reports whether an attempt after wait would start before Total and the caller's deadline.
func (k *call) fits(ctx context.Context, wait time.Duration) bool {
	now := time.Now()
	deadline, ok := ctx.Deadline()
	return wait < k.totalLeft(now) && (!ok || wait < deadline.Sub(now))
}

// totalLeft is what remains of Policy.Total at now.
func (k *call) totalLeft(now time.Time) time.Duration {
	if k.policy.Total < 0 {
		return forever
	}
	return k.policy.Total - now.Sub(k.start)
}

// refusedError is a breaker's refusal.
type refusedError struct{ cause error }

func (e *refusedError) Error() string {
	return fmt.Sprintf("httpx: refused by the breaker: %v", e.cause)
}
func (e *refusedError) Unwrap() error { return e.cause }

// refused is the end of a call whose attempt x was not sent.
func (k *call) refused(ctx context.Context, x *exchange) *Error {
	if ctx.Err() != nil {
		return k.canceled(ctx)
	}
	k.client.refusals.Add(1)
	e := &Error{Class: Refused, Stopped: StoppedRefused, cause: x.refusal}
	e.Wait, _ = k.waitAfter(1, Verdict{})
	e.Reason = "pool_exhausted"
	if _, ok := errors.AsType[*refusedError](x.refusal); ok {
		e.Reason = "breaker_open"
		if hint, ok := errors.AsType[interface {
			error
			RetryAfter() time.Duration
		}](x.refusal); ok {
			e.Wait = max(hint.RetryAfter(), 0)
		}
	}
	e.WaitReason = e.Reason
	return e
}

// canceled is the end of a call whose context ended outside an attempt.
func (k *call) canceled(ctx context.Context) *Error {
	err := &callerError{ended: ctx.Err(), cause: context.Cause(ctx)}
	v := classifyError(Outcome{Err: err})
	return &Error{Class: v.Class, Reason: v.Reason, Stopped: StoppedCanceled, cause: err}
}

// reject is the end of a call that could not begin.
func (k *call) reject(err error) *Error {
	v := classifyError(Outcome{Err: err})
	e := &Error{Class: v.Class, Reason: v.Reason, Stopped: StoppedFinal, cause: err}
	if v.Class == Refused {
		e.Stopped = StoppedRefused
		k.client.refusals.Add(1)
	}
	return e
}

// fail completes the Error of a call.
func (k *call) fail(ctx context.Context, e *Error) *Error {
	e.Attempts = k.attempts
	for i := range k.attempts {
		e.OutcomeUnknown = e.OutcomeUnknown || k.attempts[i].OutcomeUnknown
	}
	if k.token {
		k.client.budget.refund()
	}
	k.client.failures.Add(1)
	k.client.cfg.Hooks.giveUp(ctx, e)
	return e
}

// clip keeps what an Error may hold of a body, without holding on to the rest.
func clip(body []byte) []byte {
	if len(body) > maxErrorBody {
		return bytes.Clone(body[:maxErrorBody])
	}
	return body
}

// statusError is what the breaker is told of an unhealthy status.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("httpx: status %d", e.status) }
