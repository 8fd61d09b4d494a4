package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	firstPause = 250 * time.Millisecond // before the second attempt; doubles from there
	maxPause   = 5 * time.Second        // longest pause the server did not ask for
)

// errTooLong marks an answer that would be as long the next time.
var errTooLong = errors.New("answer")

// call is one request to the server, over all its attempts.
type call struct {
	method     string
	path       string        // with its query
	body       []byte        // JSON; nil for none
	key        string        // Idempotency-Key; empty for none
	hold       time.Duration // how long the server may hold the answer on purpose
	repeatable bool          // arriving twice does no harm
	patience   time.Duration // how long to try, from the first failure on; negative for one attempt
}

// do makes a call, again and again while that may help and patience lasts. It returns the last
// attempt's error, or both that and the cause when ctx ends first.
func (c *Client) do(ctx context.Context, call call) ([]byte, error) {
	var giveUp time.Time
	var last error
	for n := 1; ; n++ {
		body, err := c.attempt(ctx, call)
		if err == nil {
			return body, nil
		}
		if ctx.Err() != nil {
			return nil, call.interrupted(ctx, last)
		}
		if n == 1 {
			giveUp = time.Now().Add(call.patience)
		}
		again := time.Now().Add(c.pause(n, err))
		if !retryable(err, call.repeatable) || again.After(giveUp) {
			return nil, call.failed(err)
		}
		if c.cfg.OnRetry != nil {
			c.cfg.OnRetry(n, err, time.Until(again))
		}
		last = err
		if sleepUntil(ctx, again) != nil {
			return nil, call.interrupted(ctx, last)
		}
	}
}

// failed names the call an error ended. An *APIError names itself.
func (c call) failed(err error) error {
	if _, ok := errors.AsType[*APIError](err); ok {
		return err
	}
	return fmt.Errorf("client: %s %s: %w", c.method, c.path, err)
}

// interrupted is the error of a call whose context has ended, with the reason it was still going on.
func (c call) interrupted(ctx context.Context, last error) error {
	if last == nil {
		return fmt.Errorf("client: %s %s: %w", c.method, c.path, context.Cause(ctx))
	}
	return fmt.Errorf("client: %s %s: %w, after: %w", c.method, c.path, context.Cause(ctx), last)
}

// pause is the time before attempt n+1: a jittered doubling, or what the server asked for if longer.
func (c *Client) pause(n int, err error) time.Duration {
	pause := min(firstPause<<min(n-1, 10), maxPause)
	pause = pause/2 + time.Duration(c.rnd()*float64(pause/2))
	if e, ok := errors.AsType[*APIError](err); ok {
		pause = max(pause, e.RetryAfter)
	}
	return pause
}

// retryable decides whether another attempt may help and does no harm. What is not repeatable is
// tried again only when the server cannot have acted on it.
func retryable(err error, repeatable bool) bool {
	if e, ok := errors.AsType[*APIError](err); ok {
		switch e.Status {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			return !e.final
		case http.StatusBadGateway, http.StatusGatewayTimeout:
			return repeatable && !e.final
		}
		return false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok || errors.Is(err, errTooLong) {
		return false
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		return true
	}
	return repeatable
}

// exchangeError is why an exchange broke off: the context's cause if it ended, else err without the
// method and URL that net/http puts before it.
func exchangeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// sleepUntil returns at t, or with the cause of ctx when that ends earlier.
func sleepUntil(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("client: %w", context.Cause(ctx))
	}
}
