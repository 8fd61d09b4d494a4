package httpx_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestDo_attempts_and_waits(t *testing.T) {
	tests := []struct {
		name    string
		steps   []step
		policy  func(*httpx.Policy)
		at      string // when requests arrive
		class   httpx.Class
		reason  string
		stopped string
		wait    time.Duration
	}{
		{name: "an answer needs one attempt", steps: []step{{status: 200}}, at: "[0s]", class: httpx.OK},
		{
			name: "transient failures are repeated with growing waits", steps: []step{{status: 500}, {status: 503}, {status: 200}},
			at: "[0s 1s 3s]", class: httpx.OK,
		},
		{
			name: "a permanent failure ends the call", steps: []step{{status: 400}}, at: "[0s]",
			class: httpx.Permanent, reason: "http_400", stopped: httpx.StoppedFinal,
		},
		{
			name: "spent attempts hand back the next wait", steps: []step{{status: 500}}, at: "[0s 1s 3s]",
			class: httpx.Transient, reason: "http_500", stopped: httpx.StoppedAttempts, wait: 4 * time.Second,
		},
		{
			name: "a hint longer than the backoff is obeyed", steps: []step{{status: 429, header: "Retry-After: 5"}, {status: 200}},
			at: "[0s 5s]", class: httpx.OK,
		},
		{
			name: "a hint shorter than the backoff does not shorten it", steps: []step{{status: 429, header: "retry-after-ms: 10"}, {status: 200}},
			at: "[0s 1s]", class: httpx.OK,
		},
		{
			name: "a long hint is handed back", steps: []step{{status: 429, header: "Retry-After: 61"}}, at: "[0s]",
			class: httpx.Throttled, reason: "http_429", stopped: httpx.StoppedInline, wait: 61 * time.Second,
		},
		{
			name: "a hint is capped", steps: []step{{status: 429, header: "Retry-After: 999999999"}}, at: "[0s]",
			class: httpx.Throttled, reason: "http_429", stopped: httpx.StoppedInline, wait: time.Hour,
		},
		{
			name: "a wait that would pass the total limit is handed back", steps: []step{{status: 500, after: 4 * time.Second}},
			policy: func(p *httpx.Policy) { p.Total = 10 * time.Second }, at: "[0s 5s]",
			class: httpx.Transient, reason: "http_500", stopped: httpx.StoppedTotal, wait: 2 * time.Second,
		},
		{
			name: "an unknown outcome is repeated by default", steps: []step{{err: io.ErrUnexpectedEOF}, {status: 200}},
			at: "[0s 1s]", class: httpx.OK,
		},
		{
			name: "an unknown outcome ends the call when the policy says so", steps: []step{{err: io.ErrUnexpectedEOF}},
			policy: func(p *httpx.Policy) { p.Unknown = httpx.GiveUp }, at: "[0s]",
			class: httpx.Permanent, reason: "eof", stopped: httpx.StoppedUnknown,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				policy := exact(3)
				if tt.policy != nil {
					tt.policy(&policy)
				}
				s := newScript(tt.steps...)
				_, err := s.client(t, httpx.Config{Policy: policy}).Do(t.Context(), post)
				if got := s.times(); got != tt.at {
					t.Errorf("requests at %s, want %s", got, tt.at)
				}
				if tt.class == httpx.OK {
					if err != nil {
						t.Errorf("error %v, want an answer", err)
					}
					return
				}
				e := failure(t, err)
				if e.Class != tt.class || e.Reason != tt.reason || e.Stopped != tt.stopped || e.Wait != tt.wait {
					t.Errorf("got %s %s %s %s, want %s %s %s %s",
						e.Class, e.Reason, e.Stopped, e.Wait, tt.class, tt.reason, tt.stopped, tt.wait)
				}
				if len(e.Attempts) != s.requests() {
					t.Errorf("%d attempts in the record, want %d", len(e.Attempts), s.requests())
				}
			})
		})
	}
}

func TestDo_sends_the_same_idempotency_key_with_each_attempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 500}, step{status: 500}, step{status: 200})
		req := post
		req.IdempotencyKey = "job_1"
		req.Header = http.Header{"Content-Type": {"application/json"}}
		if _, err := s.client(t, httpx.Config{Policy: exact(3)}).Do(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if want := []string{"job_1", "job_1", "job_1"}; !slices.Equal(s.keys, want) {
			t.Errorf("keys %q, want %q", s.keys, want)
		}
		if len(req.Header) != 1 {
			t.Errorf("the caller's header became %v", req.Header)
		}
	})
}

func TestDo_gives_up_when_the_caller_cancels(t *testing.T) {
	errDrain := errors.New("draining")
	tests := []struct {
		name    string
		step    step
		ledger  string
		breaker countingBreaker
	}{
		{"inside an attempt", step{status: 200, after: time.Hour}, "[canceled]", countingBreaker{neither: 1}},
		{"inside a wait", step{status: 500}, "[transient]", countingBreaker{unhealthy: 1}},
		{"inside a body", step{status: 200, chunks: []chunk{{0, "a"}, {time.Hour, "b"}}}, "[canceled]", countingBreaker{neither: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(500*time.Millisecond, func() { cancel(errDrain) })
				s := newScript(tt.step)
				var b countingBreaker
				start := time.Now()
				_, err := s.client(t, httpx.Config{Policy: exact(3), Breaker: &b}).Do(ctx, post)
				e := failure(t, err)
				if e.Class != httpx.Canceled || e.Reason != "caller_canceled" || e.Wait != 0 {
					t.Errorf("got %s %s wait %s, want canceled caller_canceled without a wait", e.Class, e.Reason, e.Wait)
				}
				if !errors.Is(err, context.Canceled) || !errors.Is(err, errDrain) {
					t.Errorf("error %v, want context.Canceled and its cause", errors.Unwrap(err))
				}
				if got := time.Since(start); got != 500*time.Millisecond {
					t.Errorf("ended after %s, want 500ms", got)
				}
				if got := ledger(e.Attempts); got != tt.ledger || b != tt.breaker {
					t.Errorf("attempts %s, breaker was told %+v, want %s and %+v", got, b, tt.ledger, tt.breaker)
				}
				if s.open != 0 {
					t.Errorf("%d bodies left open", s.open)
				}
			})
		})
	}
}

func TestDo_passes_the_body_to_the_stream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(
			step{status: 200, chunks: []chunk{{text: "a"}, {after: time.Second, text: "b"}}, cut: io.ErrUnexpectedEOF},
			step{status: 200, chunks: []chunk{{text: "a"}, {after: time.Second, text: "bc"}}},
		)
		type piece struct {
			attempt int
			text    string
		}
		var got []piece
		req := post
		req.Stream = func(attempt int, chunk []byte) error {
			got = append(got, piece{attempt, string(chunk)})
			return nil
		}
		resp, err := s.client(t, httpx.Config{Policy: exact(3)}).Do(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if want := []piece{{1, "a"}, {1, "b"}, {2, "a"}, {2, "bc"}}; !slices.Equal(got, want) {
			t.Errorf("stream %v, want %v", got, want)
		}
		if string(resp.Body) != "abc" {
			t.Errorf("body %q, want abc", resp.Body)
		}
	})
}

func TestDo_ends_when_the_stream_refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("reader is gone")
		req := post
		req.Stream = func(int, []byte) error { return gone }
		s := newScript(step{status: 200, body: "data"})
		_, err := s.client(t, httpx.Config{Policy: exact(3)}).Do(t.Context(), req)
		if e := failure(t, err); e.Class != httpx.Canceled || e.Reason != "stream_refused" || !errors.Is(err, gone) {
			t.Errorf("got %s %s, want canceled stream_refused", e.Class, e.Reason)
		}
	})
}

// openBreaker refuses everything.
type openBreaker struct{ after time.Duration }

func (b openBreaker) Run(func() error) error    { return b }
func (b openBreaker) Error() string             { return "open" }
func (b openBreaker) RetryAfter() time.Duration { return b.after }

func TestDo_notices_the_refusal_of_a_breaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 200})
		_, err := s.client(t, httpx.Config{Breaker: openBreaker{7 * time.Second}}).Do(t.Context(), post)
		e := failure(t, err)
		if e.Class != httpx.Refused || e.Reason != "breaker_open" || e.Wait != 7*time.Second || len(e.Attempts) != 0 {
			t.Errorf("got %s %s wait %s with %d attempts, want refused breaker_open 7s without attempts",
				e.Class, e.Reason, e.Wait, len(e.Attempts))
		}
		if s.requests() != 0 {
			t.Errorf("%d requests were sent", s.requests())
		}
	})
}

// countingBreaker lets everything through and notes what it is told.
type countingBreaker struct{ healthy, unhealthy, neither int }

func (b *countingBreaker) Run(work func() error) error {
	err := work()
	switch {
	case err == nil:
		b.healthy++
	case errors.Is(err, context.Canceled):
		b.neither++
	default:
		b.unhealthy++
	}
	return err
}

func TestDo_tells_the_breaker_about_health_only(t *testing.T) {
	tests := []struct {
		name string
		step step
		want countingBreaker
	}{
		{"an answer", step{status: 200}, countingBreaker{healthy: 1}},
		{"a bad request", step{status: 400}, countingBreaker{healthy: 1}},
		{"a rate limit", step{status: 429}, countingBreaker{healthy: 1}},
		{"a server error", step{status: 500}, countingBreaker{unhealthy: 1}},
		{"a lost connection", step{err: io.EOF}, countingBreaker{unhealthy: 1}},
		{"a hanging upstream", step{after: time.Hour}, countingBreaker{unhealthy: 1}},
		{"a caller that gives up", step{err: context.Canceled}, countingBreaker{neither: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b countingBreaker
				_, _ = newScript(tt.step).client(t, httpx.Config{Policy: exact(1), Breaker: &b}).Do(t.Context(), post)
				if b != tt.want {
					t.Errorf("breaker was told %+v, want %+v", b, tt.want)
				}
			})
		})
	}
}
