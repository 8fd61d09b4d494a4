package httpx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// step is one answer of a script.
type step struct {
	status int
	header string        // "Name: value" lines
	body   string        // the whole body
	err    error         // instead of a response
	after  time.Duration // before the answer
	cut    error         // ends the body instead of EOF
	chunks []chunk       // instead of body
}

// chunk is a piece of a body.
type chunk struct {
	after time.Duration
	text  string
}

// script is a RoundTripper that gives its answers in order, the last one for ever, and notes when it was asked. It works
// in a synctest bubble.
type script struct {
	steps []step
	loop  bool // begin again after the last one

	mu    sync.Mutex // guards the fields below
	start time.Time
	at    []time.Duration
	keys  []string
	open  int // bodies not closed
}

func newScript(steps ...step) *script { return &script{steps: steps, start: time.Now()} }

// transport is for Config.Transport.
func (s *script) transport(http.RoundTripper) http.RoundTripper { return s }

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return nil, err
		}
		_ = req.Body.Close()
	}
	s.mu.Lock()
	i := min(len(s.at), len(s.steps)-1)
	if s.loop {
		i = len(s.at) % len(s.steps)
	}
	st := s.steps[i]
	s.at = append(s.at, time.Since(s.start))
	s.keys = append(s.keys, req.Header.Get("Idempotency-Key"))
	s.mu.Unlock()
	if err := pause(req.Context(), st.after); err != nil {
		return nil, err
	}
	if st.err != nil {
		return nil, st.err
	}
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	chunks := st.chunks
	if chunks == nil {
		chunks = []chunk{{text: st.body}}
	}
	return &http.Response{
		StatusCode: st.status, Header: parseHeader(st.header), ContentLength: -1, Request: req,
		Body: &scriptBody{script: s, ctx: req.Context(), chunks: chunks, cut: st.cut},
	}, nil
}

// times is when requests arrived, like "[0s 500ms]".
func (s *script) times() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.at)
}

func (s *script) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.at)
}

type scriptBody struct {
	script *script
	ctx    context.Context
	chunks []chunk
	rest   bytes.Reader
	cut    error
}

func (b *scriptBody) Read(p []byte) (int, error) {
	for b.rest.Len() == 0 {
		if len(b.chunks) == 0 {
			if b.cut != nil {
				return 0, b.cut
			}
			return 0, io.EOF
		}
		if err := pause(b.ctx, b.chunks[0].after); err != nil {
			return 0, err
		}
		b.rest.Reset([]byte(b.chunks[0].text))
		b.chunks = b.chunks[1:]
	}
	return b.rest.Read(p)
}

func (b *scriptBody) Close() error {
	b.script.mu.Lock()
	defer b.script.mu.Unlock()
	b.script.open--
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func parseHeader(lines string) http.Header {
	h := make(http.Header)
	for line := range strings.Lines(lines) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	return h
}

// client returns a client that talks to s, with chance fixed at one half and cfg for the rest.
func (s *script) client(tb testing.TB, cfg httpx.Config) *httpx.Client {
	tb.Helper()
	cfg.Transport = s.transport
	if cfg.Rand == nil {
		cfg.Rand = func() float64 { return 0.5 }
	}
	return newClient(tb, cfg)
}

func newClient(tb testing.TB, cfg httpx.Config) *httpx.Client {
	tb.Helper()
	c, err := httpx.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// exact is a policy without chance: waits 1s, 2s, 4s, ...
func exact(attempts int) httpx.Policy {
	return httpx.Policy{
		MaxAttempts: attempts,
		Backoff:     httpx.Backoff{Base: time.Second, Max: time.Minute, Jitter: httpx.JitterNone},
		MaxInline:   time.Minute,
	}
}

var post = httpx.Request{URL: "http://upstream.test/v1/chat/completions", Body: []byte(`{}`)}

// failure returns err as an *Error and fails the test when it is none.
func failure(tb testing.TB, err error) *httpx.Error {
	tb.Helper()
	var e *httpx.Error
	if !errors.As(err, &e) {
		tb.Fatalf("error %v, want an *httpx.Error", err)
	}
	return e
}
