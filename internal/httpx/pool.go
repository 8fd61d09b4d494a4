package httpx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Pool configures the connections to one upstream. The zero value of a field means its default.
type Pool struct {
	MaxConns    int           `yaml:"max_conns"`    // attempts at the same time; with HTTP/1.1 also connections; default 256
	MaxIdle     int           `yaml:"max_idle"`     // idle connections kept; default MaxConns
	IdleTimeout time.Duration `yaml:"idle_timeout"` // an idle connection is closed after this; default 30s, below the 60s of common balancers
	Wait        time.Duration `yaml:"wait"`         // longest wait for a free place, then the attempt is refused; default 1s
	Refresh     time.Duration `yaml:"refresh"`      // age at which connections are no longer reused, so that DNS changes show; default 5m
	DialTimeout time.Duration `yaml:"dial_timeout"` // name resolution and TCP; default 5s
	TLSTimeout  time.Duration `yaml:"tls_timeout"`  // TLS handshake; default 5s
	HTTP2       bool          `yaml:"http2"`        // offer HTTP/2; default off: one stuck TCP connection then stalls one call, not all

	TLS *tls.Config `yaml:"-"` // certificates and versions; nil: Go's defaults. NextProtos is set from HTTP2

	// Dial replaces the dialer; DialTimeout holds all the same. It must honour its context. nil: a plain net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"`
}

func (p Pool) withDefaults() Pool {
	p.MaxConns = orDefault(p.MaxConns, 256)
	p.MaxIdle = orDefault(p.MaxIdle, p.MaxConns)
	p.IdleTimeout = orDefault(p.IdleTimeout, 30*time.Second)
	p.Wait = orDefault(p.Wait, time.Second)
	p.Refresh = orDefault(p.Refresh, 5*time.Minute)
	p.DialTimeout = orDefault(p.DialTimeout, 5*time.Second)
	p.TLSTimeout = orDefault(p.TLSTimeout, 5*time.Second)
	if p.Dial == nil {
		p.Dial = new(net.Dialer).DialContext
	}
	return p
}

func (p Pool) validate() error {
	var errs []error
	if p.MaxConns < 1 {
		errs = append(errs, fmt.Errorf("pool.max_conns: %d is below 1", p.MaxConns))
	}
	if p.MaxIdle < 1 {
		errs = append(errs, fmt.Errorf("pool.max_idle: %d is below 1", p.MaxIdle))
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"idle_timeout", p.IdleTimeout},
		{"wait", p.Wait},
		{"refresh", p.Refresh},
		{"dial_timeout", p.DialTimeout},
		{"tls_timeout", p.TLSTimeout},
	} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("pool.%s: %s is not above 0", d.key, d.value))
		}
	}
	return errors.Join(errs...)
}

// PoolStats is a snapshot of the pool. Times are sums.
type PoolStats struct {
	InUse     int           // attempts that hold a place now
	Open      int           // connections now
	Idle      int           // connections without an attempt; exact with HTTP/1.1
	Waits     int64         // attempts that had to wait for a place
	WaitTime  time.Duration // their waits
	Exhausted int64         // attempts refused after Pool.Wait
	Dials     int64         // connections asked for
	DialFails int64         // of these, failed before they were usable
	DialTime  time.Duration // name resolution and TCP
	TLSTime   time.Duration // TLS handshakes, those behind a proxy not counted
	Reused    int64         // attempts on a connection that had served before
	Fresh     int64         // attempts on a new connection
}

// ReuseRatio is the share of attempts on a connection that had served before, 0 before the first attempt.
func (s PoolStats) ReuseRatio() float64 {
	if s.Reused+s.Fresh == 0 {
		return 0
	}
	return float64(s.Reused) / float64(s.Reused+s.Fresh)
}

// pool hands out places and owns the transport.
type pool struct {
	cfg    Pool
	wrap   func(http.RoundTripper) http.RoundTripper
	places chan struct{} // one token per attempt in flight; a channel because it queues fairly and minds contexts

	mu      sync.Mutex // guards the swap of current
	current atomic.Pointer[generation]

	open, waits, waitTime, exhausted, dials, dialFails, dialTime, tlsTime, reused, fresh atomic.Int64
}

// generation is a transport with its birthday. A pool changes to a new one after Pool.Refresh: connections of the old
// one finish what they do and are then closed.
type generation struct {
	born      time.Time
	transport *http.Transport
	entry     http.RoundTripper // transport, wrapped
}

func newPool(cfg Pool, wrap func(http.RoundTripper) http.RoundTripper) *pool {
	p := &pool{cfg: cfg, wrap: wrap, places: make(chan struct{}, cfg.MaxConns)}
	p.current.Store(p.newGeneration())
	return p
}

func (p *pool) newGeneration() *generation {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         p.dial,
		DialTLSContext:      p.dialTLS,
		TLSClientConfig:     p.cfg.TLS,
		TLSHandshakeTimeout: p.cfg.TLSTimeout, // behind a proxy's tunnel, where dialTLS is not asked
		MaxIdleConns:        p.cfg.MaxIdle,
		MaxIdleConnsPerHost: p.cfg.MaxIdle,
		IdleConnTimeout:     p.cfg.IdleTimeout,
		ForceAttemptHTTP2:   p.cfg.HTTP2,

		MaxResponseHeaderBytes: 1 << 20,
	}
	if !p.cfg.HTTP2 {
		t.MaxConnsPerHost = p.cfg.MaxConns // dials that outlive their attempt count too
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	} else {
		// All calls share a few connections: find out soon when one of them is dead.
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second}
	}
	g := &generation{born: time.Now(), transport: t, entry: t}
	if p.wrap != nil {
		g.entry = p.wrap(t)
	}
	return g
}

// roundTripper returns the transport for an attempt that starts at now.
func (p *pool) roundTripper(now time.Time) http.RoundTripper {
	g := p.current.Load()
	if now.Sub(g.born) < p.cfg.Refresh {
		return g.entry
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.Load() == g {
		p.current.Store(p.newGeneration())
		// Also closes connections in use as soon as they become idle, until somebody asks this transport again.
		g.transport.CloseIdleConnections()
	}
	return p.current.Load().entry
}

// acquire takes a place, waiting at most Pool.Wait, or not at all for a hedge, which is optional.
func (p *pool) acquire(ctx context.Context, atOnce bool) error {
	select {
	case p.places <- struct{}{}:
		return nil
	default:
	}
	if atOnce {
		return ErrPoolTimeout
	}
	start := time.Now()
	timer := time.NewTimer(p.cfg.Wait)
	defer timer.Stop()
	p.waits.Add(1)
	defer func() { p.waitTime.Add(int64(time.Since(start))) }()
	select {
	case p.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		p.exhausted.Add(1)
		return ErrPoolTimeout
	}
}

func (p *pool) release() { <-p.places }

// dial opens a TCP connection.
func (p *pool) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	start := time.Now()
	p.dials.Add(1)
	ctx, cancel := dialContext(ctx, p.cfg.DialTimeout, ErrDialTimeout)
	defer cancel()
	raw, err := p.cfg.Dial(ctx, network, addr)
	p.dialTime.Add(int64(time.Since(start)))
	if err != nil {
		p.dialFails.Add(1)
		return nil, &dialError{cause: timeoutCause(ctx, err)}
	}
	p.open.Add(1)
	return &conn{Conn: raw, pool: p}, nil
}

// dialTLS opens a TLS connection. Doing it here, not in the transport, gives the handshake an error of its own.
func (p *pool) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := p.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	ctx, cancel := dialContext(ctx, p.cfg.TLSTimeout, ErrTLSTimeout)
	defer cancel()
	secure := tls.Client(raw, p.tlsConfig(addr))
	err = secure.HandshakeContext(ctx)
	p.tlsTime.Add(int64(time.Since(start)))
	if err != nil {
		p.dialFails.Add(1)
		_ = raw.Close() // the handshake's error is the one that counts
		return nil, &dialError{cause: timeoutCause(ctx, err), handshake: true}
	}
	return secure, nil
}

// attemptKey finds the context of the attempt that asked for a connection.
type attemptKey struct{}

// dialContext bounds one step of a dial. net/http detaches dials from their requests, so that a connection that comes too
// late may serve the next one; a dial into a black hole then outlives its canceled attempt. Here it ends with an attempt
// that was canceled or ran out of time, and goes on only when the attempt ended otherwise.
func dialContext(ctx context.Context, limit time.Duration, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, cause)
	attempt, ok := ctx.Value(attemptKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(attempt, func() {
		if !errors.Is(context.Cause(attempt), errEnded) {
			cancel()
		}
	})
	return ctx, func() { stop(); cancel() }
}

func (p *pool) tlsConfig(addr string) *tls.Config {
	cfg := new(tls.Config)
	if p.cfg.TLS != nil {
		cfg = p.cfg.TLS.Clone()
	}
	if host, _, err := net.SplitHostPort(addr); err == nil && cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.NextProtos = []string{"http/1.1"}
	if p.cfg.HTTP2 {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	return cfg
}

// timeoutCause returns err, together with the time limit when it was that which ended ctx.
func timeoutCause(ctx context.Context, err error) error {
	if limit, ok := errors.AsType[*timeoutError](context.Cause(ctx)); ok {
		return fmt.Errorf("%w: %w", error(limit), err)
	}
	return err
}

// dialError marks a failure before anything of the request was written.
type dialError struct {
	cause     error
	handshake bool // of TLS
}

func (e *dialError) Error() string { return "httpx: connect: " + e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

// conn counts what is written, so that an attempt knows whether it reached the wire, and tells the pool when it closes.
type conn struct {
	net.Conn
	pool    *pool
	written atomic.Int64
	once    sync.Once
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

func (c *conn) Close() error {
	c.once.Do(func() { c.pool.open.Add(-1) })
	return c.Conn.Close()
}

// unwrapConn finds our conn under a TLS session; nil when the connection is not ours.
func unwrapConn(nc net.Conn) *conn {
	if secure, ok := nc.(*tls.Conn); ok {
		nc = secure.NetConn()
	}
	c, _ := nc.(*conn)
	return c
}

func (p *pool) stats() PoolStats {
	s := PoolStats{
		InUse:     len(p.places),
		Open:      int(p.open.Load()),
		Waits:     p.waits.Load(),
		WaitTime:  time.Duration(p.waitTime.Load()),
		Exhausted: p.exhausted.Load(),
		Dials:     p.dials.Load(),
		DialFails: p.dialFails.Load(),
		DialTime:  time.Duration(p.dialTime.Load()),
		TLSTime:   time.Duration(p.tlsTime.Load()),
		Reused:    p.reused.Load(),
		Fresh:     p.fresh.Load(),
	}
	s.Idle = max(s.Open-s.InUse, 0)
	return s
}

func (p *pool) close() { p.current.Load().transport.CloseIdleConnections() }
