// Package upstreamtest simulates an upstream that speaks the OpenAI API, as
// net/http/httptest simulates a web server: for tests, and for a first try
// without a key.
//
// Its answers are deterministic and its failures are chosen: by share for the
// whole server ([Faults]), in order by a test ([Server.Script]), or by one
// request for itself, with the header X-Simulate or a body field such as
// "simulate": "503*2,latency=200ms". The field passes through any queue that
// keeps unknown fields.
//
// It serves POST /v1/chat/completions, /v1/completions and /v1/embeddings,
// plain and streamed, and GET /v1/models.
package upstreamtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Config describes a simulated upstream. The zero value is one that needs no
// key, answers any model at once and never fails.
type Config struct {
	Faults          Faults        // how it fails; default never
	Seed            uint64        // chooses the draws; request n of equal seeds meets the same fault
	APIKey          string        // bearer token to ask for; default none
	Models          []string      // the only models served; default any, listing DefaultModels
	TokensPerSecond float64       // pace of an answer; default as fast as possible
	HangFor         time.Duration // longest Timeout fault, then the connection closes; default 5m
	KeepJournal     int           // requests kept for Journal; default 1024, negative none
	Logger          *slog.Logger  // one line per request; default none
}

// DefaultModels is what GET /v1/models lists when Config.Models is empty.
func DefaultModels() []string { return []string{"gpt-5-mini", "text-embedding-3-small"} }

func (c Config) withDefaults() Config {
	c.HangFor = cmp.Or(c.HangFor, 5*time.Minute)
	c.KeepJournal = cmp.Or(c.KeepJournal, 1024)
	c.Models = slices.Clone(c.Models)
	return c
}

// Step is one scripted answer. The zero Step is a normal one.
type Step struct {
	Fault      Kind
	Latency    time.Duration
	RetryAfter time.Duration // as in Faults

	// A Status above 0 answers exactly this instead.
	Status int
	Header http.Header
	Body   string
}

// Server is a simulated upstream: an [http.Handler] and its controls. All
// methods are safe for concurrent use.
type Server struct {
	// URL is the address without path, such as http://127.0.0.1:41234. [Start]
	// sets it.
	URL string

	cfg Config

	mu          sync.Mutex // guards all below
	faults      Faults
	script      []Step
	journal     journal
	requests    int64
	refused     int64
	inFlight    int
	maxInFlight int
	isDown      bool
	down        chan struct{} // closed while down
	conns       map[net.Conn]*connection

	open sync.WaitGroup // connections seen through Attach
}

// connection is what Attach learns about one client connection.
type connection struct {
	requests int // guarded by Server.mu
}

type connectionKey struct{}

var _ http.Handler = (*Server)(nil)

// New returns an upstream to be served by [http.Server] or httptest. Call
// [Server.Attach] as well to have Down cut idle connections and the journal
// notice reused ones.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	return &Server{
		cfg:     cfg,
		faults:  cfg.Faults,
		journal: newJournal(cfg.KeepJournal),
		down:    make(chan struct{}),
		conns:   make(map[net.Conn]*connection),
	}
}

// TB is the part of [testing.TB] that [Start] needs. It keeps package testing
// out of binaries that simulate an upstream.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// Start serves a new upstream on a free loopback port until the test ends.
func Start(tb TB, cfg Config) *Server {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal("upstreamtest:", err)
	}
	s := New(cfg)
	s.URL = "http://" + l.Addr().String()
	// The log would only repeat the faults we caused.
	hs := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	s.Attach(hs)
	var serving sync.WaitGroup
	serving.Go(func() { _ = hs.Serve(l) }) // ends with ErrServerClosed
	tb.Cleanup(func() {
		_ = hs.Close() // nothing is left to be lost
		serving.Wait()
		s.open.Wait()
	})
	return s
}

// BaseURL is what an OpenAI client takes as its base URL: URL and /v1.
func (s *Server) BaseURL() string { return s.URL + "/v1" }

// Attach makes hs serve s and report its connections. Call it before hs serves.
func (s *Server) Attach(hs *http.Server) {
	hs.Handler = s
	hs.ConnContext = s.opened
	hs.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			s.closed(conn)
		}
	}
}

func (s *Server) opened(ctx context.Context, conn net.Conn) context.Context {
	s.open.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := new(connection)
	s.conns[conn] = c
	if s.isDown {
		s.refused++
		reset(conn)
	}
	return context.WithValue(ctx, connectionKey{}, c)
}

func (s *Server) closed(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[conn]; ok {
		delete(s.conns, conn)
		s.open.Done()
	}
}

// SetFaults replaces the faults of all requests that arrive from now on.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Script answers the next POST requests with steps, one each in order of
// arrival, whatever else is set. Later calls append.
func (s *Server) Script(steps ...Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, steps...)
}

// Down resets every connection, those in the middle of an answer too, and every
// later one at once, until [Server.Up].
func (s *Server) Down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDown {
		return
	}
	s.isDown = true
	close(s.down)
	for conn := range s.conns {
		reset(conn)
	}
}

// Up ends [Server.Down].
func (s *Server) Up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDown {
		s.isDown = false
		s.down = make(chan struct{})
	}
}

// Reset makes s as new: up, with its first faults, no script and no memory of
// requests. Those in flight go on and are forgotten.
func (s *Server) Reset() {
	s.Up()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.script = s.cfg.Faults, nil
	s.journal = newJournal(s.cfg.KeepJournal)
	s.requests, s.refused, s.maxInFlight = 0, 0, s.inFlight
}

// Journal returns the latest requests in order of arrival, those in flight
// included.
func (s *Server) Journal() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal.list()
}

// Requests is how many requests have arrived.
func (s *Server) Requests() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Refused is how many connections or requests met a server that was down.
func (s *Server) Refused() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// InFlight is how many requests wait for their answer now.
func (s *Server) InFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight
}

// MaxInFlight is the highest InFlight so far.
func (s *Server) MaxInFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxInFlight
}

// Tally returns the counts of the requests with an Idempotency-Key.
func (s *Server) Tally(key string) Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, generation := range []map[string]*Tally{s.journal.young, s.journal.old} {
		if t := generation[key]; t != nil {
			return *t
		}
	}
	return Tally{}
}

// Tallies returns the counts of at least the latest 131,072 jobs by
// Idempotency-Key. Requests without one count under method, path and a hash of
// the body.
func (s *Server) Tallies() map[string]Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal.tallies()
}

// reset closes conn so that the peer sees a TCP reset. Other connections than
// TCP, e.g. a net.Pipe, are only closed.
func reset(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails only on a closed connection
	}
	_ = conn.Close() // likewise
}
