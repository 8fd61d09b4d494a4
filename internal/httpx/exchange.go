package httpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// Attempt is the record of one HTTP exchange.
type Attempt struct {
	Start          time.Time
	Duration       time.Duration
	Status         int           // 0 without a response
	Class          Class         // OK for the answer that was used
	Reason         string        // see docs/httpx.md for the closed set
	Sent           bool          // the request, or part of it, was written to a connection: this attempt reached the upstream
	OutcomeUnknown bool          // it may have taken effect without an answer
	Wait           time.Duration // planned before the next attempt, in process or by the caller; 0 when there is none
	WaitReason     string        // "backoff" or "retry_after"
	Hedge          bool          // a second attempt sent before the first one ended
}

// exchange is one attempt on its way.
type exchange struct {
	call    *call
	hedge   bool
	ran     bool  // the breaker let the attempt through
	refusal error // why it was not sent, when it was not
	record  Attempt
	outcome Outcome
	verdict Verdict

	trace   httptrace.ClientTrace
	asked   atomic.Bool          // a transport of net/http looked for a connection
	conn    atomic.Pointer[conn] // the connection it travels on, when the pool made it
	written int64                // conn.written when the exchange got it; guarded by conn
	body    bytes.Reader
	watch   watch
}

// run makes the attempt: a place in the pool, then the breaker, then the wire.
func (x *exchange) run(ctx context.Context) {
	c := x.call.client
	if err := c.pool.acquire(ctx, x.hedge); err != nil {
		x.refusal = err
		return
	}
	defer c.pool.release()
	if c.cfg.Breaker == nil {
		_ = x.send(ctx) // only the breaker needs it: the verdict is in x
		return
	}
	err := c.cfg.Breaker.Run(func() error { return x.send(ctx) })
	if !x.ran {
		x.refusal = &refusedError{err}
	}
}

// send exchanges request and response and returns what the breaker should count: nil, an unhealthy outcome's error, or
// context.Canceled for neither.
func (x *exchange) send(ctx context.Context) error {
	x.ran = true
	c := x.call.client
	x.record.Start, x.record.Hedge = time.Now(), x.hedge
	c.attempts.Add(1)
	x.outcome = x.roundTrip(ctx)
	if x.verdict = c.cfg.Classify(x.outcome); x.verdict.Class == Unclassified {
		x.verdict = Classify(x.outcome)
	}
	x.record.Duration = time.Since(x.record.Start)
	x.record.Status, x.record.Sent = x.outcome.Status, x.outcome.Sent
	x.record.Class, x.record.Reason = x.verdict.Class, x.verdict.Reason
	x.record.OutcomeUnknown = x.verdict.OutcomeUnknown && x.outcome.Sent && !x.call.safe
	switch {
	case x.verdict.Class == Canceled:
		return context.Canceled
	case !x.verdict.Unhealthy:
		return nil
	case x.outcome.Err != nil:
		return x.outcome.Err
	}
	return &statusError{x.outcome.Status}
}

// roundTrip sends the request and reads the response within the time limits.
func (x *exchange) roundTrip(parent context.Context) Outcome {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(errEnded)
	x.watch.begin(x.record.Start, &x.call.policy, x.call.totalLeft(x.record.Start), cancel)
	defer x.watch.end()

	x.trace.GotConn = x.gotConn
	if x.call.client.cfg.Transport != nil {
		x.trace.GetConn = func(string) { x.asked.Store(true) }
	}
	rt := x.call.client.pool.roundTripper(x.record.Start)
	traced := httptrace.WithClientTrace(context.WithValue(ctx, attemptKey{}, ctx), &x.trace)
	resp, err := rt.RoundTrip(x.request(traced))
	if err != nil {
		return Outcome{Err: cause(parent, ctx, err), Sent: x.sent()}
	}
	defer func() { _ = resp.Body.Close() }() // read as far as we care: nothing left to lose
	x.watch.resume()
	o := Outcome{Status: resp.StatusCode, Header: resp.Header, Sent: true}
	o.Body, o.Err = x.read(resp)
	if o.Err != nil {
		o.Err = cause(parent, ctx, o.Err)
		if resp.StatusCode >= 300 && parent.Err() == nil {
			o.Err = nil // the status says enough; only its text is missing
		}
	}
	return o
}

// request builds the request of this attempt. GetBody stays nil: with it, net/http would silently repeat a POST that
// carries an Idempotency-Key when a reused connection breaks, and a call that costs money must not be repeated unseen.
func (x *exchange) request(ctx context.Context) *http.Request {
	k := x.call
	r := http.Request{
		Method: k.req.Method, URL: k.url, Header: k.header, Host: k.url.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if len(k.req.Body) > 0 {
		// Only a body that net/http knows to be in memory leaves in one packet with the header.
		x.body.Reset(k.req.Body)
		r.Body, r.ContentLength = io.NopCloser(&x.body), int64(len(k.req.Body))
	}
	return r.WithContext(ctx)
}

func (x *exchange) gotConn(info httptrace.GotConnInfo) {
	p := x.call.client.pool
	if info.Reused {
		p.reused.Add(1)
	} else {
		p.fresh.Add(1)
	}
	if c := unwrapConn(info.Conn); c != nil {
		x.written = c.written.Load()
		x.conn.Store(c)
	}
}

// sent reports whether a failed attempt wrote anything. Of a transport that replaces the pool's nothing is known, so it
// counts as sent.
func (x *exchange) sent() bool {
	if c := x.conn.Load(); c != nil {
		return c.written.Load() > x.written
	}
	return x.call.client.cfg.Transport != nil && !x.asked.Load()
}

// cause adds to err why ctx ended, when that is where err comes from: one of our limits, or the caller.
func cause(parent, ctx context.Context, err error) error {
	why := context.Cause(ctx)
	if why == nil {
		return err
	}
	if _, limit := errors.AsType[*timeoutError](why); limit {
		return fmt.Errorf("%w: %w", why, err)
	}
	return &callerError{ended: parent.Err(), cause: why}
}

const maxErrorBody = 64 << 10 // of an error response; what is beyond is not read

// read reads the body, touching the watch at each sign of life.
func (x *exchange) read(resp *http.Response) ([]byte, error) {
	limit, stream := x.call.client.cfg.MaxBody, x.call.req.Stream
	switch {
	case resp.StatusCode < 200:
		return nil, nil // 101: the body is a connection without end
	case resp.StatusCode >= 300:
		limit, stream = maxErrorBody, nil
	}
	buf := make([]byte, 0, bodyCapacity(resp.ContentLength, limit))
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		x.watch.touch()
		chunk := buf[len(buf) : len(buf)+n]
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return buf[:limit], ErrBodyTooLarge
		}
		if stream != nil && n > 0 {
			x.watch.hold()
			if err := stream(len(x.call.attempts)+1, chunk); err != nil {
				return buf, fmt.Errorf("%w: %w", ErrStream, err)
			}
			x.watch.resume()
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, fmt.Errorf("%w: %w", ErrPartialBody, err)
		}
	}
}

// bodyCapacity trusts Content-Length (-1: unknown) up to a megabyte, so that a lie costs little.
func bodyCapacity(length, limit int64) int64 {
	if length < 0 {
		length = 4 << 10
	}
	return min(length, limit, 1<<20) + 1 // room to see the end without growing
}
