package httpx_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// memory is an HTTP server without a network, so that it works in a synctest bubble. The host that is dialed decides
// nothing; the dialed addresses are noted.
type memory struct {
	conns  chan net.Conn
	closed chan struct{}
	open   atomic.Int64 // connections on the server's side
	dials  atomic.Int64
}

func serve(t *testing.T, handler http.HandlerFunc) *memory {
	t.Helper()
	m := &memory{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: handler, ErrorLog: silent, ConnState: countOpen(&m.open)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(m) // ends with Close
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return m
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { close(m.closed); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	m.dials.Add(1)
	ours, theirs := net.Pipe()
	select {
	case m.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, `{}`)
}

func TestPool_reuses_connections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := serve(t, answer)
		c := newClient(t, httpx.Config{Pool: httpx.Pool{Dial: m.dial}})
		for range 10 {
			if _, err := c.Do(t.Context(), post); err != nil {
				t.Fatal(err)
			}
		}
		st := c.Stats().Pool
		if st.Dials != 1 || st.Fresh != 1 || st.Reused != 9 || st.Open != 1 || st.Idle != 1 || st.InUse != 0 {
			t.Errorf("stats %+v, want one connection that served ten calls and is idle", st)
		}
		if got := st.ReuseRatio(); got != 0.9 {
			t.Errorf("reuse ratio %v, want 0.9", got)
		}
	})
}

func TestPool_reuses_the_connection_of_an_error_response(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		m := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) < 3 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return
			}
			answer(w, r)
		})
		c := newClient(t, httpx.Config{Policy: exact(3), Pool: httpx.Pool{Dial: m.dial}})
		if _, err := c.Do(t.Context(), post); err != nil {
			t.Fatal(err)
		}
		if got := m.dials.Load(); got != 1 {
			t.Errorf("%d connections for three attempts, want 1", got)
		}
	})
}

func TestPool_never_exceeds_MaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		m := serve(t, func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			defer now.Add(-1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(time.Second) // virtual
			answer(w, r)
		})
		c := newClient(t, httpx.Config{Pool: httpx.Pool{MaxConns: 7, Wait: time.Hour, Dial: m.dial}})
		var running sync.WaitGroup
		for range 50 {
			running.Go(func() {
				if _, err := c.Do(t.Context(), post); err != nil {
					t.Error(err)
				}
			})
		}
		running.Wait()
		if most.Load() != 7 || m.open.Load() > 7 {
			t.Errorf("up to %d requests at once on %d connections, want 7", most.Load(), m.open.Load())
		}
		if st := c.Stats().Pool; st.Waits != 43 || st.InUse != 0 {
			t.Errorf("stats %+v, want 43 waits and no place in use", st)
		}
	})
}

func TestPool_closes_idle_connections_after_IdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := serve(t, answer)
		c := newClient(t, httpx.Config{Pool: httpx.Pool{IdleTimeout: 10 * time.Second, Dial: m.dial}})
		if _, err := c.Do(t.Context(), post); err != nil {
			t.Fatal(err)
		}
		for _, want := range []struct {
			after time.Duration
			open  int
		}{{9999 * time.Millisecond, 1}, {time.Millisecond, 0}} {
			time.Sleep(want.after) // virtual
			synctest.Wait()
			if got := c.Stats().Pool.Open; got != want.open || m.open.Load() != int64(want.open) {
				t.Errorf("%d connections open, %d at the server, want %d", got, m.open.Load(), want.open)
			}
		}
	})
}

func TestPool_limits_idle_connections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := serve(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // virtual
			answer(w, r)
		})
		c := newClient(t, httpx.Config{Pool: httpx.Pool{MaxIdle: 2, Dial: m.dial}})
		var running sync.WaitGroup
		for range 10 {
			running.Go(func() { _, _ = c.Do(t.Context(), post) })
		}
		running.Wait()
		synctest.Wait()
		if st := c.Stats().Pool; st.Idle != 2 || m.open.Load() != 2 {
			t.Errorf("%d idle connections, %d at the server, want 2", st.Idle, m.open.Load())
		}
	})
}

// A name that moves: after Refresh calls go to the new address although the old connections never fell idle for long.
func TestPool_refresh_picks_up_a_change_of_address(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var here, there atomic.Int64
		count := func(n *atomic.Int64) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				answer(w, r)
			}
		}
		first, second := serve(t, count(&here)), serve(t, count(&there))
		var moved atomic.Bool
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			if moved.Load() {
				return second.dial(ctx, network, addr)
			}
			return first.dial(ctx, network, addr)
		}
		c := newClient(t, httpx.Config{Pool: httpx.Pool{Refresh: time.Minute, Dial: dial}})
		for i := range 120 {
			moved.Store(i >= 30)
			if _, err := c.Do(t.Context(), post); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // virtual
		}
		synctest.Wait()
		if here.Load() != 60 || there.Load() != 60 {
			t.Errorf("%d calls went to the old address and %d to the new one, want 60 and 60", here.Load(), there.Load())
		}
		if first.open.Load() != 0 {
			t.Errorf("%d connections to the old address are open", first.open.Load())
		}
	})
}

func TestPool_refresh_lets_calls_in_flight_finish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				time.Sleep(2 * time.Minute) // virtual
			}
			answer(w, r)
		})
		p := exact(1)
		p.FirstByte, p.Attempt = -1, -1
		c := newClient(t, httpx.Config{Policy: p, Pool: httpx.Pool{Refresh: time.Minute, IdleTimeout: time.Hour, Dial: m.dial}})
		var running sync.WaitGroup
		running.Go(func() {
			if _, err := c.Do(t.Context(), httpx.Request{URL: "http://upstream.test/slow"}); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(90 * time.Second) // virtual
		if _, err := c.Do(t.Context(), post); err != nil {
			t.Error(err)
		}
		running.Wait()
		synctest.Wait()
		if got := m.open.Load(); got != 1 {
			t.Errorf("%d connections open, want 1: the old one closes after its call", got)
		}
	})
}

func TestPool_HTTP2_on_and_off(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for _, tt := range []struct {
		on   bool
		want string
	}{{true, "HTTP/2.0"}, {false, "HTTP/1.1"}} {
		c := newClient(t, httpx.Config{Pool: httpx.Pool{HTTP2: tt.on, TLS: &tls.Config{RootCAs: roots}}})
		for range 2 {
			resp, err := c.Do(t.Context(), httpx.Request{URL: server.URL, Body: []byte("{}")})
			if err != nil {
				t.Fatal(err)
			}
			if string(resp.Body) != tt.want || !resp.Attempts[0].Sent {
				t.Errorf("the server was asked in %s, want %s", resp.Body, tt.want)
			}
		}
		if st := c.Stats().Pool; st.Dials != 1 || st.Reused != 1 || st.DialTime <= 0 || st.TLSTime <= 0 {
			t.Errorf("stats %+v, want one connection with times, used twice", st)
		}
	}
}
