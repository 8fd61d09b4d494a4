package httpx_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// net/http repeats a request with an Idempotency-Key by itself when a reused connection breaks. Here no attempt goes
// unseen: the server's count and the ledger agree.
func TestDo_never_repeats_unseen(t *testing.T) {
	var requests atomic.Int64
	addr := listenRaw(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for range 2 { // the second request on a connection is read and not answered
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if requests.Add(1)%2 == 1 {
				write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")(c)
			}
		}
	})
	c := newClient(t, httpx.Config{Policy: twice()})
	req := httpx.Request{URL: "http://" + addr, Body: []byte("{}"), IdempotencyKey: "job_1"}
	if _, err := c.Do(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := ledger(resp.Attempts); got != "[transient ok]" || requests.Load() != 3 {
		t.Errorf("ledger %s for %d requests, want [transient ok] for 3 in both calls", got, requests.Load())
	}
	if first := resp.Attempts[0]; !first.Sent || !first.OutcomeUnknown {
		t.Errorf("the unanswered attempt counts as sent %v, unknown %v, want true and true", first.Sent, first.OutcomeUnknown)
	}
}

func TestDo_does_not_follow_redirects(t *testing.T) {
	var leaked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Store(true) }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	_, err := newClient(t, httpx.Config{}).Do(t.Context(), httpx.Request{URL: server.URL, Header: http.Header{"Authorization": {"Bearer key"}}})
	if e := failure(t, err); e.Class != httpx.Permanent || e.Header.Get("Location") != elsewhere.URL || leaked.Load() {
		t.Errorf("got %v, followed %v, want a permanent failure with the location", err, leaked.Load())
	}
}

func TestError_text_holds_no_secret(t *testing.T) {
	const secret = "sk-secret"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "wrong key "+secret, http.StatusUnauthorized)
	}))
	defer server.Close()
	for name, url := range map[string]string{
		"response": server.URL, "bad URL": "http://user:" + secret + "@[::1", "no host": "/v1?key=" + secret,
	} {
		_, err := newClient(t, httpx.Config{}).Do(t.Context(), httpx.Request{URL: url, Header: http.Header{"Authorization": {secret}}})
		for cause := err; cause != nil; cause = errors.Unwrap(cause) {
			if strings.Contains(cause.Error(), secret) {
				t.Errorf("%s: the secret is in %q", name, cause)
			}
		}
	}
	_, err := newClient(t, httpx.Config{}).Do(t.Context(), httpx.Request{URL: server.URL})
	if e := failure(t, err); !strings.Contains(string(e.Body), "wrong key") {
		t.Errorf("body %q, want the upstream's text for the caller", e.Body)
	}
}

func TestDo_keeps_a_bounded_part_of_an_error_body(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
	}))
	defer server.Close()
	_, err := newClient(t, httpx.Config{}).Do(t.Context(), httpx.Request{URL: server.URL})
	if e := failure(t, err); e.Class != httpx.Permanent || len(e.Body) != 64<<10 {
		t.Errorf("%s with %d bytes, want permanent with 65536", e.Class, len(e.Body))
	}
}

// What a canceled call leaves behind: nothing. The server sees its connection close, the pool has a free place.
func TestDo_cancel_closes_the_connection(t *testing.T) {
	var open atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	gone := make(chan struct{}, 100)
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
			gone <- struct{}{}
		}
	}
	server.Start()
	defer server.Close()
	c := newClient(t, httpx.Config{})
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := c.Do(ctx, httpx.Request{URL: server.URL, Body: []byte("{}")})
		cancel()
		if e := failure(t, err); e.Class != httpx.Canceled || e.Reason != "caller_deadline" {
			t.Errorf("got %v, want canceled caller_deadline", err)
		}
	}
	for open.Load() > 0 {
		<-gone
	}
	if st := c.Stats().Pool; st.InUse != 0 || st.Idle != 0 {
		t.Errorf("stats %+v, want no connection", st)
	}
}

// One packet, one system call: net/http does this only for bodies that it knows to be in memory.
func TestDo_sends_header_and_body_in_one_write(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(answer))
	defer server.Close()
	var writes atomic.Int64
	c := newClient(t, httpx.Config{Pool: httpx.Pool{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &countingConn{raw, &writes}, err
	}}})
	for range 3 {
		if _, err := c.Do(t.Context(), httpx.Request{URL: server.URL, Body: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	if got := writes.Load(); got != 3 {
		t.Errorf("%d writes for three requests, want 3", got)
	}
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// A wrapped transport (tracing) is still the pool's: what was not sent is known not to be.
func TestDo_knows_what_was_sent(t *testing.T) {
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer hanging.Close()
	wrap := func(rt http.RoundTripper) http.RoundTripper { return struct{ http.RoundTripper }{rt} }
	for _, tt := range []struct {
		name   string
		method string
		cfg    httpx.Config
		sent   bool
		lost   bool // outcome unknown
	}{
		{"a POST that hangs", http.MethodPost, httpx.Config{}, true, true},
		{"a GET that hangs", http.MethodGet, httpx.Config{}, true, false},
		{"a POST that hangs, wrapped", http.MethodPost, httpx.Config{Transport: wrap}, true, true},
		{"a dial that hangs", http.MethodPost, httpx.Config{Pool: httpx.Pool{Dial: hang}}, false, false},
		{"a dial that hangs, wrapped", http.MethodPost, httpx.Config{Pool: httpx.Pool{Dial: hang}, Transport: wrap}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := newClient(t, tt.cfg).Do(ctx, httpx.Request{Method: tt.method, URL: hanging.URL, Body: []byte("{}")})
			e := failure(t, err)
			if a := e.Attempts[0]; a.Sent != tt.sent || a.OutcomeUnknown != tt.lost || e.OutcomeUnknown != tt.lost {
				t.Errorf("sent %v, outcome unknown %v, want %v and %v", a.Sent, a.OutcomeUnknown, tt.sent, tt.lost)
			}
		})
	}
}
