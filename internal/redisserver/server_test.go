package redisserver_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// parentDir makes the test binary start a server in that directory, print its
// address and wait to be killed.
const parentDir = "REDISSERVER_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentDir); dir != "" {
		os.Exit(parent(dir))
	}
	os.Exit(m.Run())
}

func parent(dir string) int {
	s, err := redisserver.Start(context.Background(), redisserver.Config{Dir: dir, AppendOnly: true, AppendFsync: "no"})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(s.Addr())
	<-s.Done()
	return 1
}

// do sends one inline command and returns the answer: a line as it is, an array
// of strings joined by spaces. A refused dial is an answer too.
func do(tb testing.TB, addr, command string) string {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		tb.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	if !lines.Scan() {
		tb.Fatalf("%s: no answer: %v", command, lines.Err())
	}
	n, isArray := strings.CutPrefix(lines.Text(), "*")
	if !isArray {
		return lines.Text()
	}
	count, err := strconv.Atoi(n)
	if err != nil {
		tb.Fatal(err)
	}
	var items []string
	for len(items) < count && lines.Scan() && lines.Scan() { // a length, then the string
		items = append(items, lines.Text())
	}
	return strings.Join(items, " ")
}

func TestStartKeepsItsPromises(t *testing.T) {
	s := redistest.Start(t, func(c *redisserver.Config) {
		c.MaxMemory = "64mb"
		c.Args = []string{"--maxmemory-policy", "allkeys-lru"} // must not win
	})
	if got := do(t, s.Addr(), "PING"); got != "+PONG" {
		t.Errorf("PING answered %q", got)
	}
	if want := "redis://" + s.Addr() + "/0"; s.URL() != want {
		t.Errorf("URL is %s, want %s", s.URL(), want)
	}
	for _, want := range []string{
		"maxmemory-policy noeviction", "maxmemory 67108864", "appendonly yes", "save ", "bind 127.0.0.1", "protected-mode yes",
	} {
		option, _, _ := strings.Cut(want, " ")
		if got := do(t, s.Addr(), "CONFIG GET "+option); got != want {
			t.Errorf("the server has %q, want %q", got, want)
		}
	}
}

func TestDataDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	redistest.Start(t, func(c *redisserver.Config) { c.Dir = dir })
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode is %o, want 700", got)
	}
}

func TestDataSurvives(t *testing.T) {
	tests := []struct {
		name string
		end  func(*redisserver.Server) error
	}{
		{name: "a restart", end: func(s *redisserver.Server) error { return nil }},
		{name: "a stop", end: func(s *redisserver.Server) error { return s.Stop(context.Background()) }},
		{name: "a kill", end: (*redisserver.Server).Kill},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := redistest.Start(t)
			addr := s.Addr()
			if got := do(t, addr, "SET k 42"); got != "+OK" {
				t.Fatal(got)
			}
			if err := tt.end(s); err != nil {
				t.Fatal(err)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.Addr() != addr {
				t.Errorf("address is %s, was %s", s.Addr(), addr)
			}
			if got := do(t, addr, "INCR k"); got != ":43" {
				t.Errorf("INCR after the restart answered %q, want :43", got)
			}
		})
	}
}

func TestStopAndKillAreRepeatable(t *testing.T) {
	s := redistest.Start(t)
	done := s.Done()
	for range 2 {
		if err := errors.Join(s.Stop(t.Context()), s.Kill()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-done:
	default:
		t.Error("Done is open after Stop")
	}
	if got := do(t, s.Addr(), "PING"); !strings.Contains(got, "refused") {
		t.Errorf("PING after Stop answered %q", got)
	}
}

func TestPauseFreezesAndStopStillWorks(t *testing.T) {
	s := redistest.Start(t)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", s.Addr()) // the kernel accepts for a frozen process
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 16)
	if n, err := conn.Read(answer); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a paused server answered %q, %v", answer[:n], err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if got := do(t, s.Addr(), "PING"); got != "+PONG" {
		t.Errorf("PING after Resume answered %q", got)
	}
	if err := errors.Join(s.Pause(), s.Stop(t.Context())); err != nil {
		t.Errorf("stop while paused: %v", err)
	}
}

func TestSecondServerInADirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	in := func(c *redisserver.Config) { c.Dir = dir }
	first := redistest.Start(t, in)
	_, err := redisserver.Start(t.Context(), redisserver.Config{Dir: dir})
	if !errors.Is(err, redisserver.ErrInUse) {
		t.Fatalf("error is %v, want ErrInUse", err)
	}
	for _, want := range []string{dir, fmt.Sprintf("process %d (redis-server %d)", os.Getpid(), first.PID())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	redistest.Start(t, in) // fails the test when the lock is stale
}

func TestChildAndLockGoWithAKilledParent(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), parentDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimSpace(line)
	if got := do(t, addr, "SET k 42"); got != "+OK" {
		t.Fatal(got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"

	s := redistest.Start(t, func(c *redisserver.Config) { c.Dir = dir })
	if got := do(t, s.Addr(), "INCR k"); got != ":43" {
		t.Errorf("INCR after the crash answered %q, want :43", got)
	}
	if got := do(t, addr, "PING"); !strings.Contains(got, "refused") {
		t.Errorf("the orphan answered %q", got)
	}
}

func TestStartRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		name string
		cfg  redisserver.Config
		is   error
		says []string
	}{
		{
			name: "a missing binary, and says how to install it",
			cfg:  redisserver.Config{Dir: t.TempDir(), Binary: "no-such-redis"},
			is:   redisserver.ErrNotInstalled,
			says: []string{"no-such-redis", "apt-get install redis-server", "brew install redis"},
		},
		{
			name: "every wrong field at once",
			cfg:  redisserver.Config{Addr: "0.0.0.0:http", AppendFsync: "sometimes"},
			says: []string{"dir: is required", `host "0.0.0.0"`, `port "http"`, `"sometimes"`},
		},
		{
			name: "a port somebody else listens on",
			cfg:  redisserver.Config{Dir: t.TempDir(), Addr: taken.Addr().String()},
			says: []string{"port is taken", taken.Addr().String()},
		},
		{
			name: "an option redis-server does not know, with its own words",
			cfg:  redisserver.Config{Dir: t.TempDir(), Args: []string{"--no-such-option", "1"}},
			says: []string{"exit status 1", "no-such-option"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := redisserver.Start(t.Context(), tt.cfg)
			if err == nil {
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestServersStartTogether(t *testing.T) {
	addrs := make([]string, 4)
	var wg sync.WaitGroup
	for i := range addrs {
		wg.Go(func() {
			var log bytes.Buffer
			s, err := redisserver.Start(t.Context(), redisserver.Config{Dir: t.TempDir(), Log: &log})
			if err != nil {
				t.Error(err)
				return
			}
			addrs[i] = s.Addr()
			if err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "Ready to accept connections") {
				t.Errorf("log is %q", log.String())
			}
		})
	}
	wg.Wait()
}
