// Package redisserver runs a private redis-server as a child process, for a
// first try on one machine and for tests that need the real thing.
//
// The child belongs to us: it listens on loopback only, never evicts, keeps its
// append-only file in one directory that no second server can open, outlives a
// Ctrl-C meant for us and, on Linux, ends when we do.
package redisserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// ErrNotInstalled is matched by the error of [Start] when there is no
// redis-server binary to run. The message says how to install one.
var ErrNotInstalled = errors.New("redisserver: redis-server is not installed")

// ErrInUse is matched by the error of [Start] and [Server.Restart] when another
// server holds the directory.
var ErrInUse = errors.New("redisserver: directory is in use")

// errPortTaken means that another process won the port we had found free.
var errPortTaken = errors.New("redisserver: port is taken")

const (
	host      = "127.0.0.1"
	stopGrace = 10 * time.Second // from SIGTERM to SIGKILL
	portTries = 16
)

// Config says how to run the child. Only Dir is required.
type Config struct {
	Dir         string    // data directory, created with mode 0700; one server at a time
	Addr        string    // 127.0.0.1:port; port 0 takes a free one; default "127.0.0.1:0"
	AppendOnly  bool      // keep an append-only file; without it nothing survives the child
	AppendFsync string    // "always", "everysec" or "no"; default "everysec"
	MaxMemory   string    // as redis.conf writes it, e.g. "512mb"; default no limit
	Binary      string    // path or name of the server; default "redis-server" in PATH
	Log         io.Writer // receives the child's output; default discarded
	Args        []string  // more options, e.g. "--databases", "1"; ours win
}

// withDefaults returns c with every unset field filled in and Dir made absolute.
func (c Config) withDefaults() (Config, error) {
	if c.Addr == "" {
		c.Addr = net.JoinHostPort(host, "0")
	}
	if c.AppendFsync == "" {
		c.AppendFsync = "everysec"
	}
	if c.Binary == "" {
		c.Binary = "redis-server"
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	if err := c.validate(); err != nil {
		return c, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, fmt.Errorf("redisserver: dir: %w", err)
	}
	c.Dir = dir
	return c, nil
}

// validate reports every problem at once.
func (c Config) validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("redisserver: dir: is required"))
	}
	if h, port, err := net.SplitHostPort(c.Addr); err != nil {
		errs = append(errs, fmt.Errorf("redisserver: addr: %w", err))
	} else {
		if h != host {
			errs = append(errs, fmt.Errorf("redisserver: addr: host %q is not %s, the only one served", h, host))
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			errs = append(errs, fmt.Errorf("redisserver: addr: port %q is not a number below 65536", port))
		}
	}
	if !slices.Contains([]string{"always", "everysec", "no"}, c.AppendFsync) {
		errs = append(errs, fmt.Errorf("redisserver: append_fsync: %q is not always, everysec or no", c.AppendFsync))
	}
	return errors.Join(errs...)
}

// Server is a running child. Its methods are safe for concurrent use.
type Server struct {
	cfg    Config
	binary string // resolved path

	addr string // host:port, fixed before Start returns

	mu    sync.Mutex // guards child, and is held while one starts or stops
	child *child     // the latest child, running or not
}

// Start runs a redis-server and returns once it answers PING. ctx bounds the
// start, which includes loading an existing append-only file; it does not
// bound the life of the child. The caller ends it with [Server.Stop].
//
// The error matches [ErrNotInstalled] when there is no binary and [ErrInUse]
// when another server holds cfg.Dir.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	binary, err := exec.LookPath(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; install it with \"apt-get install redis-server\" (Debian, Ubuntu), "+
			"\"dnf install redis\" (Fedora) or \"brew install redis\" (macOS)", ErrNotInstalled, err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("redisserver: data directory: %w", err)
	}
	s := &Server{cfg: cfg, binary: binary, addr: cfg.Addr}
	if err := s.findAddr(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// findAddr launches the first child. A port of 0 is replaced by a free one, and
// by another when a stranger takes that before the child does.
func (s *Server) findAddr(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, port, _ := net.SplitHostPort(s.addr); port != "0" { // validated by Start
		return s.launchLocked(ctx)
	}
	var last error
	for range portTries {
		addr, err := freeAddr(ctx)
		if err != nil {
			return err
		}
		s.addr = addr
		if last = s.launchLocked(ctx); !errors.Is(last, errPortTaken) {
			return last
		}
	}
	return last
}

// launchLocked runs one child at s.addr and waits until it answers.
func (s *Server) launchLocked(ctx context.Context) error {
	c, err := newChild(ctx, s.binary, s.arguments(), s.cfg)
	if err != nil {
		return err
	}
	if err := c.waitReady(ctx, s.addr); err != nil {
		return errors.Join(err, c.kill())
	}
	s.child = c
	return nil
}

// arguments is the child's command line. The caller's options come first
// because the last of two equal options counts.
func (s *Server) arguments() []string {
	_, port, _ := net.SplitHostPort(s.addr) // built or validated by us
	appendOnly := "no"
	if s.cfg.AppendOnly {
		appendOnly = "yes"
	}
	args := append(slices.Clone(s.cfg.Args),
		"--port", port, "--bind", host, "--protected-mode", "yes",
		"--dir", s.cfg.Dir, "--save", "", "--appendonly", appendOnly, "--appendfsync", s.cfg.AppendFsync,
		"--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", "")
	if s.cfg.MaxMemory != "" {
		args = append(args, "--maxmemory", s.cfg.MaxMemory)
	}
	return args
}

// Addr is the address the child listens on, host:port. It does not change over
// the life of s.
func (s *Server) Addr() string { return s.addr }

// URL is the address in the form Redis clients parse: redis://host:port/0.
func (s *Server) URL() string { return "redis://" + s.Addr() + "/0" }

// PID is the child's process id, the last one's when it has ended.
func (s *Server) PID() int { return s.current().pid() }

// Done is closed when the child that runs now has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.current().done }

func (s *Server) current() *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child
}

// Stop ends the child with SIGTERM, which writes the append-only file out, and
// waits for it. When ctx ends or ten seconds pass first, the child is killed
// and the error says so. Stop on an ended child returns nil.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child.stop(ctx)
}

// Kill ends the child with SIGKILL, as a crash would, and waits for it.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child.kill()
}

// Restart stops the child if it runs, and starts another on the same address
// and directory. ctx bounds both.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.child.stop(ctx); err != nil {
		return err
	}
	return s.launchLocked(ctx)
}

// Pause freezes the child (SIGSTOP): connections stay open, nothing answers.
func (s *Server) Pause() error { return s.current().signal(sigPause) }

// Resume lets a paused child go on (SIGCONT).
func (s *Server) Resume() error { return s.current().signal(sigResume) }
