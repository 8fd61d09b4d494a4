package httpx_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// Each limit ends an attempt at its exact instant, with its own error.
func TestDo_time_limits(t *testing.T) {
	policy := httpx.Policy{
		MaxAttempts: 1, FirstByte: 10 * time.Second, Idle: 3 * time.Second, Attempt: 20 * time.Second, Total: 30 * time.Second,
	}
	tests := []struct {
		name string
		step step
		edit func(*httpx.Policy)
		want error
		at   time.Duration
	}{
		{name: "first byte", step: step{after: time.Hour}, want: httpx.ErrFirstByteTimeout, at: 10 * time.Second},
		{
			name: "idle, before the first piece", step: step{status: 200, after: time.Second, chunks: []chunk{{time.Hour, "a"}}},
			want: httpx.ErrIdleTimeout, at: 4 * time.Second,
		},
		{
			name: "idle, after some pieces",
			step: step{status: 200, chunks: []chunk{{time.Second, "a"}, {2900 * time.Millisecond, "b"}, {time.Hour, "c"}}},
			want: httpx.ErrIdleTimeout, at: 6900 * time.Millisecond,
		},
		{
			name: "idle, after a header that came late", step: step{status: 200, after: 9999 * time.Millisecond, chunks: []chunk{{time.Hour, "a"}}},
			want: httpx.ErrIdleTimeout, at: 12999 * time.Millisecond,
		},
		{name: "attempt", step: step{status: 200, chunks: drip(60)}, want: httpx.ErrAttemptTimeout, at: 20 * time.Second},
		{
			name: "attempt, with the other limits off", step: step{after: time.Hour},
			edit: func(p *httpx.Policy) { p.FirstByte, p.Idle, p.Total = -1, -1, -1 },
			want: httpx.ErrAttemptTimeout, at: 20 * time.Second,
		},
		{
			name: "total", step: step{status: 200, chunks: drip(60)}, edit: func(p *httpx.Policy) { p.Attempt = -1 },
			want: httpx.ErrTotalTimeout, at: 30 * time.Second,
		},
		{
			name: "idle alone", step: step{status: 200, after: time.Hour, chunks: []chunk{{time.Hour, "a"}}},
			edit: func(p *httpx.Policy) { p.FirstByte, p.Attempt, p.Total = -1, -1, -1 },
			want: httpx.ErrIdleTimeout, at: time.Hour + 3*time.Second,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := policy
				if tt.edit != nil {
					tt.edit(&p)
				}
				s := newScript(tt.step)
				start := time.Now()
				_, err := s.client(t, httpx.Config{Policy: p}).Do(t.Context(), post)
				if !errors.Is(err, tt.want) {
					t.Errorf("cause %v, want %v", errors.Unwrap(err), tt.want)
				}
				if got := time.Since(start); got != tt.at {
					t.Errorf("ended after %s, want %s", got, tt.at)
				}
				var timeout net.Error
				if !errors.As(err, &timeout) || !timeout.Timeout() {
					t.Error("the error is no timeout to net.Error")
				}
				if s.open != 0 {
					t.Errorf("%d bodies left open", s.open)
				}
			})
		})
	}
}

func TestDo_lets_a_slow_body_flow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpx.Policy{MaxAttempts: 1, FirstByte: time.Second, Idle: 2 * time.Second, Attempt: time.Hour, Total: time.Hour}
		resp, err := newScript(step{status: 200, chunks: drip(600)}).client(t, httpx.Config{Policy: p}).Do(t.Context(), post)
		if err != nil || len(resp.Body) != 600 {
			t.Errorf("error %v, want 600 bytes", err)
		}
	})
}

func TestDo_does_not_blame_the_upstream_for_a_slow_reader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpx.Policy{MaxAttempts: 1, Idle: 2 * time.Second}
		req := post
		req.Stream = func(int, []byte) error {
			time.Sleep(time.Minute) // virtual
			return nil
		}
		s := newScript(step{status: 200, chunks: []chunk{{0, "a"}, {time.Second, "b"}, {time.Hour, "c"}}})
		start := time.Now()
		_, err := s.client(t, httpx.Config{Policy: p}).Do(t.Context(), req)
		if !errors.Is(err, httpx.ErrIdleTimeout) {
			t.Errorf("cause %v, want %v", errors.Unwrap(err), httpx.ErrIdleTimeout)
		}
		if got, want := time.Since(start), 2*time.Minute+3*time.Second; got != want {
			t.Errorf("ended after %s, want %s: silence counts from the end of the reader's work", got, want)
		}
	})
}

func TestDo_connection_limits(t *testing.T) {
	pipe := func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		return ours, nil
	}
	tests := []struct {
		name string
		url  string
		dial dialFunc
		want error
		at   time.Duration
	}{
		{"dial", "http://upstream.test/", hang, httpx.ErrDialTimeout, 2 * time.Second},
		{"TLS", "https://upstream.test/", pipe, httpx.ErrTLSTimeout, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, httpx.Config{
					Policy: exact(1), Pool: httpx.Pool{DialTimeout: 2 * time.Second, TLSTimeout: 3 * time.Second, Dial: tt.dial},
				})
				start := time.Now()
				_, err := c.Do(t.Context(), httpx.Request{URL: tt.url})
				if !errors.Is(err, tt.want) {
					t.Errorf("cause %v, want %v", errors.Unwrap(err), tt.want)
				}
				if got := time.Since(start); got != tt.at {
					t.Errorf("ended after %s, want %s", got, tt.at)
				}
				if e := failure(t, err); e.Attempts[0].Sent || e.OutcomeUnknown {
					t.Error("an attempt without a connection counts as sent")
				}
				if open := c.Stats().Pool.Open; open != 0 {
					t.Errorf("%d connections are open", open)
				}
			})
		})
	}
}

// net/http lets a dial outlive its request. A black hole must not hold goroutines of calls that are long gone.
func TestDo_cancel_ends_the_dial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Time, 1)
		c := newClient(t, httpx.Config{Pool: httpx.Pool{
			DialTimeout: time.Hour,
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				defer func() { ended <- time.Now() }()
				return hang(ctx, network, addr)
			},
		}})
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Do(ctx, post)
		if e := failure(t, err); e.Class != httpx.Canceled || e.Attempts[0].Sent {
			t.Errorf("got %v, want canceled and not sent", err)
		}
		if got := (<-ended).Sub(start); got != time.Second {
			t.Errorf("the dial ended after %s, want 1s", got)
		}
	})
}

func TestDo_pool_wait_limit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 200, after: time.Minute})
		c := s.client(t, httpx.Config{Pool: httpx.Pool{MaxConns: 1, Wait: 4 * time.Second}})
		go func() { _, _ = c.Do(t.Context(), post) }()
		synctest.Wait()
		start := time.Now()
		_, err := c.Do(t.Context(), post)
		e := failure(t, err)
		if !errors.Is(err, httpx.ErrPoolTimeout) || e.Class != httpx.Refused || e.Reason != "pool_exhausted" || len(e.Attempts) != 0 {
			t.Errorf("got %v, want a refusal without attempts", err)
		}
		if got := time.Since(start); got != 4*time.Second {
			t.Errorf("refused after %s, want 4s", got)
		}
		if st := c.Stats().Pool; st.Waits != 1 || st.WaitTime != 4*time.Second || st.Exhausted != 1 || st.InUse != 1 {
			t.Errorf("stats %+v, want one wait of 4s, one refusal, one place in use", st)
		}
	})
}
