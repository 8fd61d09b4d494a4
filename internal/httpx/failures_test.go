package httpx_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

var update = flag.Bool("update", false, "rewrite the tables in docs/httpx.md")

// What follows a failure, as seen from outside with one more attempt left.
const (
	again = "retried"     // a second attempt was made in process
	later = "handed back" // the caller gets the wait: the job snoozes
	never = "final"       // the job fails
	ended = "ended"       // the caller wanted it so: back to the queue, no try spent
)

// failures is the catalogue. Each entry makes the failure happen to a client with two attempts and returns the error.
// The table in docs/httpx.md is written from it.
var failures = []struct {
	name   string
	class  httpx.Class
	reason string
	then   string
	make   func(*testing.T) error
}{
	{"400 bad request", httpx.Permanent, "http_400", never, answered(step{status: 400})},
	{"401 wrong key", httpx.Permanent, "http_401", never, answered(step{status: 401})},
	{"403 forbidden", httpx.Permanent, "http_403", never, answered(step{status: 403})},
	{"404 no such model", httpx.Permanent, "http_404", never, answered(step{status: 404})},
	{"408 request timeout", httpx.Transient, "http_408", again, answered(step{status: 408})},
	{"409 lock", httpx.Transient, "http_409", again, answered(step{status: 409})},
	{"413 too large", httpx.Permanent, "http_413", never, answered(step{status: 413})},
	{"422 unprocessable", httpx.Permanent, "http_422", never, answered(step{status: 422})},
	{"425 too early", httpx.Transient, "http_425", again, answered(step{status: 425})},
	{"429 without a hint", httpx.Throttled, "http_429", again, answered(step{status: 429})},
	{"429 with a short Retry-After", httpx.Throttled, "http_429", again, answered(step{status: 429, header: "Retry-After: 2"})},
	{"429 with a long Retry-After", httpx.Throttled, "http_429", later, answered(step{status: 429, header: "Retry-After: 300"})},
	{"429 with an exhausted token limit", httpx.Throttled, "http_429", later, answered(step{
		status: 429, header: "x-ratelimit-remaining-tokens: 0\nx-ratelimit-reset-tokens: 6m0s",
	})},
	{"500 server error", httpx.Transient, "http_500", again, answered(step{status: 500})},
	{"501 not implemented", httpx.Permanent, "http_501", never, answered(step{status: 501})},
	{"502 bad gateway, with HTML", httpx.Transient, "http_502", again, answered(step{status: 502, body: "<html>"})},
	{"503 unavailable", httpx.Transient, "http_503", again, answered(step{status: 503})},
	{"503 with a long Retry-After", httpx.Throttled, "http_503", later, answered(step{status: 503, header: "Retry-After: 120"})},
	{"504 gateway timeout", httpx.Transient, "http_504", again, answered(step{status: 504})},
	{"505 HTTP version", httpx.Permanent, "http_505", never, answered(step{status: 505})},
	{"522 Cloudflare cannot connect", httpx.Transient, "http_522", again, answered(step{status: 522})},
	{"529 overloaded", httpx.Transient, "http_529", again, answered(step{status: 529})},
	{"307 redirect", httpx.Permanent, "http_307", never, answered(step{status: 307, header: "Location: https://elsewhere.test/"})},
	{"x-should-retry: true on a 400", httpx.Transient, "http_400", again, answered(step{status: 400, header: "x-should-retry: true"})},
	{"x-should-retry: false on a 503", httpx.Permanent, "http_503", never, answered(step{status: 503, header: "x-should-retry: false"})},

	{"connection refused", httpx.Transient, "connection_refused", again, refusedPort},
	{"connection reset after the request", httpx.Transient, "connection_reset", again, wired(reset)},
	{"connection closed before the answer", httpx.Transient, "eof", again, wired(write(""))},
	{"header cut", httpx.Transient, "connection_lost", again, wired(write("HTTP/1.1 200 OK\r\nContent-Le"))},
	{"not HTTP", httpx.Transient, "connection_lost", again, wired(write("SSH-2.0-OpenSSH_9.6\r\n"))},
	{"body shorter than Content-Length", httpx.Transient, "partial_body", again, wired(write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":"))},
	{"chunked body cut", httpx.Transient, "partial_body", again, wired(write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"id\":\r\n"))},
	{"reset inside the body", httpx.Transient, "partial_body", again, wired(func(c net.Conn) {
		write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":")(c)
		reset(c)
	})},
	{"gzip that is none", httpx.Transient, "broken_encoding", again, wired(write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 15\r\n\r\nnot gzip at all"))},
	{"gzip cut", httpx.Transient, "partial_body", again, wired(writeGzip(func(b []byte) []byte { return b[:len(b)/2] }))},
	{"gzip with a wrong checksum", httpx.Transient, "broken_encoding", again, wired(writeGzip(func(b []byte) []byte {
		b[len(b)-8] ^= 0xff
		return b
	}))},
	{"gzip corrupt inside", httpx.Transient, "broken_encoding", again, wired(writeGzip(func(b []byte) []byte {
		for i := 12; i < len(b)-8; i++ {
			b[i] = 0xff
		}
		return b
	}))},
	{"body above MaxBody", httpx.Permanent, "body_too_large", never, answered(step{status: 200, body: strings.Repeat("x", 1025)})},
	{"invalid JSON in a 200, by the caller's classifier", httpx.Transient, "invalid_body", again, answered(step{status: 200, body: "{"})},
	{"insufficient quota, by the caller's classifier", httpx.Permanent, "insufficient_quota", never, answered(step{status: 429, body: "quota"})},

	{"dial timeout", httpx.Transient, "timeout_dial", again, dialed(hang)},
	{"TLS handshake timeout", httpx.Transient, "timeout_tls", again, silentTLS},
	{"no response header", httpx.Transient, "timeout_first_byte", again, answered(step{after: time.Hour})},
	{"silence inside the body", httpx.Transient, "timeout_idle", again, answered(step{status: 200, chunks: []chunk{{0, "{"}, {time.Hour, "}"}}})},
	{"a body that drips for ever", httpx.Transient, "timeout_attempt", again, answered(step{status: 200, chunks: drip(1000)})},
	{"total limit inside an attempt", httpx.Transient, "timeout_total", later, totalLimit},
	{"name does not exist", httpx.Permanent, "dns_not_found", never, dialed(fail(&net.DNSError{Err: "no such host", IsNotFound: true}))},
	{"name server out of order", httpx.Transient, "dns", again, dialed(fail(&net.DNSError{Err: "server misbehaving", IsTemporary: true}))},
	{"name server timeout", httpx.Transient, "dns", again, dialed(fail(&net.DNSError{Err: "timeout", IsTimeout: true, UnwrapErr: context.DeadlineExceeded}))},
	{"i/o timeout of the operating system", httpx.Transient, "timeout_connection", again, dialed(fail(os.ErrDeadlineExceeded))},
	{"no route", httpx.Transient, "unreachable", again, dialed(fail(os.NewSyscallError("connect", syscall.EHOSTUNREACH)))},
	{"TCP gives up", httpx.Transient, "timeout_connection", again, dialed(fail(os.NewSyscallError("connect", syscall.ETIMEDOUT)))},
	{"own descriptors spent", httpx.Refused, "out_of_descriptors", later, dialed(fail(os.NewSyscallError("socket", syscall.EMFILE)))},
	{"certificate of an unknown authority", httpx.Permanent, "tls_certificate", never, wrongCertificate},
	{"https to a port that speaks http", httpx.Permanent, "tls_not_spoken", never, plainPort},
	{"TLS alert", httpx.Transient, "tls_handshake", again, tlsAlert},
	{"malformed URL", httpx.Permanent, "bad_request", never, requested(httpx.Request{URL: "upstream.test/v1"})},
	{"line feed in a header", httpx.Permanent, "bad_request", never, requested(httpx.Request{
		URL: post.URL, Header: http.Header{"Authorization": {"Bearer key\n"}},
	})},

	{"breaker open", httpx.Refused, "breaker_open", later, refusedByBreaker},
	{"pool exhausted", httpx.Refused, "pool_exhausted", later, exhausted},
	{"client closed", httpx.Refused, "closed", later, closedClient},
	{"caller cancels", httpx.Canceled, "caller_canceled", ended, canceled},
	{"caller's deadline", httpx.Canceled, "caller_deadline", ended, deadline},
	{"stream reader refuses", httpx.Canceled, "stream_refused", ended, requested(httpx.Request{
		URL: post.URL, Stream: func(int, []byte) error { return io.ErrClosedPipe },
	})},
}

func TestFailures(t *testing.T) {
	for _, tt := range failures {
		t.Run(tt.name, func(t *testing.T) {
			e := failure(t, tt.make(t))
			if e.Class != tt.class || e.Reason != tt.reason {
				t.Errorf("got %s %s, want %s %s (cause: %v)", e.Class, e.Reason, tt.class, tt.reason, errors.Unwrap(e))
			}
			if got := disposition(e); got != tt.then {
				t.Errorf("got %s after %d attempts, want %s", got, len(e.Attempts), tt.then)
			}
		})
	}
}

func disposition(e *httpx.Error) string {
	switch {
	case e.Class == httpx.Canceled:
		return ended
	case !e.Class.Retryable():
		return never
	case len(e.Attempts) == 2:
		return again
	}
	return later
}

func TestFailures_documented(t *testing.T) {
	var b strings.Builder
	b.WriteString("| failure | class | reason | then |\n| --- | --- | --- | --- |\n")
	for _, f := range failures {
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s |\n", f.name, f.class, f.reason, f.then)
	}
	checkDocs(t, "failures", b.String())
}

// checkDocs compares the part of docs/httpx.md between two markers with want, or rewrites it with -update.
func checkDocs(t *testing.T, section, want string) {
	t.Helper()
	const path = "../../docs/httpx.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- begin "+section+" -->\n", "<!-- end "+section+" -->"
	head, rest, ok1 := strings.Cut(string(doc), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no section %q", path, section)
	}
	if got == want {
		return
	}
	if !*update {
		t.Errorf("section %q of %s is out of date: run go test with -update", section, path)
		return
	}
	if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// twice is the policy of the catalogue: two attempts, short limits.
func twice() httpx.Policy {
	return httpx.Policy{
		MaxAttempts: 2, Backoff: httpx.Backoff{Base: time.Millisecond, Jitter: httpx.JitterNone},
		FirstByte: 10 * time.Second, Idle: 5 * time.Second, Attempt: 30 * time.Second, Total: 10 * time.Minute,
	}
}

// wrapped is a classifier like the one of package openai.
func wrapped(o httpx.Outcome) httpx.Verdict {
	v := httpx.Classify(o)
	switch {
	case v.Class == httpx.OK && string(o.Body) == "{":
		v = httpx.Verdict{Class: httpx.Transient, Reason: "invalid_body", Unhealthy: true, OutcomeUnknown: true}
	case string(o.Body) == "quota":
		v = httpx.Verdict{Class: httpx.Permanent, Reason: "insufficient_quota"}
	}
	return v
}

// answered lets the upstream give the same answer to each attempt, in virtual time.
func answered(st step) func(*testing.T) error {
	return func(t *testing.T) (err error) {
		synctest.Test(t, func(t *testing.T) {
			c := newScript(st).client(t, httpx.Config{Policy: twice(), Classify: wrapped, MaxBody: 1024})
			_, err = c.Do(t.Context(), post)
		})
		return err
	}
}

func requested(req httpx.Request) func(*testing.T) error {
	return func(t *testing.T) error {
		_, err := newScript(step{status: 200, body: "x"}).client(t, httpx.Config{Policy: twice()}).Do(t.Context(), req)
		return err
	}
}

// wired lets serve answer each request on a real TCP connection and then closes it.
func wired(serve func(net.Conn)) func(*testing.T) error {
	return func(t *testing.T) error {
		_, err := newClient(t, httpx.Config{Policy: twice()}).Do(t.Context(), httpx.Request{URL: "http://" + listen(t, serve)})
		return err
	}
}

// listen serves TCP connections, each in a goroutine of its own, until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					serve(c)
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func write(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

func writeGzip(damage func([]byte) []byte) func(net.Conn) {
	return func(c net.Conn) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, strings.Repeat("some text ", 100))
		_ = w.Close()
		body := damage(b.Bytes())
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
}

func reset(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }

func drip(n int) []chunk {
	chunks := make([]chunk, n)
	for i := range chunks {
		chunks[i] = chunk{after: time.Second, text: "."}
	}
	return chunks
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

func hang(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func fail(err error) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
}

// dialed lets every dial end as given, in virtual time.
func dialed(dial dialFunc) func(*testing.T) error {
	return func(t *testing.T) (err error) {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(t, httpx.Config{Policy: twice(), Pool: httpx.Pool{Dial: dial}})
			_, err = c.Do(t.Context(), post)
		})
		return err
	}
}

func refusedPort(t *testing.T) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = newClient(t, httpx.Config{Policy: twice()}).Do(t.Context(), httpx.Request{URL: "http://" + l.Addr().String()})
	return err
}

// silentTLS connects to somebody who reads and never answers.
func silentTLS(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			return ours, nil
		}
		c := newClient(t, httpx.Config{Policy: twice(), Pool: httpx.Pool{Dial: dial}})
		_, err = c.Do(t.Context(), httpx.Request{URL: "https://upstream.test/"})
	})
	return err
}

func totalLimit(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		p := twice()
		p.Total, p.FirstByte, p.Attempt = 15*time.Second, 10*time.Second, 10*time.Second
		s := newScript(step{status: 500, after: 9 * time.Second}, step{after: time.Hour})
		p.MaxAttempts = 3
		_, err = s.client(t, httpx.Config{Policy: p}).Do(t.Context(), post)
		failure(t, err).Attempts = failure(t, err).Attempts[1:] // the first one only made it late
	})
	return err
}

func wrongCertificate(t *testing.T) error {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = silent
	s.StartTLS()
	t.Cleanup(s.Close)
	_, err := newClient(t, httpx.Config{Policy: twice()}).Do(t.Context(), httpx.Request{URL: s.URL})
	return err
}

func plainPort(t *testing.T) error {
	addr := listenRaw(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1024))
		write("HTTP/1.1 400 Bad Request\r\n\r\n")(c)
	})
	_, err := newClient(t, httpx.Config{Policy: twice()}).Do(t.Context(), httpx.Request{URL: "https://" + addr})
	return err
}

// tlsAlert answers the ClientHello with a fatal handshake_failure (RFC 8446 §6).
func tlsAlert(t *testing.T) error {
	addr := listenRaw(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		write("\x15\x03\x03\x00\x02\x02\x28")(c)
	})
	_, err := newClient(t, httpx.Config{Policy: twice()}).Do(t.Context(), httpx.Request{URL: "https://" + addr})
	return err
}

func refusedByBreaker(t *testing.T) error {
	_, err := newScript(step{status: 200}).client(t, httpx.Config{Breaker: openBreaker{time.Second}}).Do(t.Context(), post)
	return err
}

func exhausted(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 200, after: time.Minute})
		c := s.client(t, httpx.Config{Pool: httpx.Pool{MaxConns: 1}})
		go func() { _, _ = c.Do(t.Context(), post) }()
		synctest.Wait()
		_, err = c.Do(t.Context(), post)
	})
	return err
}

func closedClient(t *testing.T) error {
	c := newScript(step{status: 200}).client(t, httpx.Config{})
	c.Close()
	_, err := c.Do(t.Context(), post)
	return err
}

func canceled(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = newScript(step{after: time.Hour}).client(t, httpx.Config{Policy: twice()}).Do(ctx, post)
	})
	return err
}

func deadline(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = newScript(step{after: time.Hour}).client(t, httpx.Config{Policy: twice()}).Do(ctx, post)
	})
	return err
}
