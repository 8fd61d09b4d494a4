package httpx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// A hanging upstream holds thousands of calls; then they are canceled. Soon nothing is left of them, here or at
// the server. -short makes it small; so does the race detector, which ends a program with more than 8128 goroutines.
func TestStorm_of_hanging_calls_leaves_nothing_behind(t *testing.T) {
	calls := 10_000
	if testing.Short() || raceFactor > 1 {
		calls = 500
	}
	server := startHanging(t)
	c := newClient(t, httpx.Config{
		Policy: httpx.Policy{FirstByte: time.Hour, Attempt: time.Hour, Total: time.Hour},
		Pool:   httpx.Pool{MaxConns: calls, DialTimeout: time.Minute},
	})
	goroutines, memory := runtime.NumGoroutine(), inUse()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	var wrong atomic.Int64
	for range calls {
		running.Go(func() {
			_, err := c.Do(ctx, httpx.Request{URL: server.url, Body: []byte("{}")})
			var e *httpx.Error
			if !errors.As(err, &e) || e.Class != httpx.Canceled {
				wrong.Add(1)
			}
		})
	}
	server.await(t, "inside", calls)
	perCall := (inUse() - memory) / calls
	start := time.Now()
	cancel()
	running.Wait()
	ended := time.Since(start)
	for c.Stats().Pool.Open > 0 || runtime.NumGoroutine() > goroutines {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("%d connections and %d goroutines are left", c.Stats().Pool.Open, runtime.NumGoroutine()-goroutines)
		}
		runtime.Gosched()
	}
	clean := time.Since(start)
	server.await(t, "open", 0)
	t.Logf("%d calls, %.1f KiB each; ended %s after the cancel, no goroutine or connection left after %s, at the server after %s",
		calls, float64(perCall)/1024, ended.Round(time.Millisecond), clean.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	// On an idle machine it takes half a second; this one may be shared.
	if limit := 5 * time.Second * raceFactor; clean > limit {
		t.Errorf("clean %s after the cancel, want at most %s", clean, limit)
	}
	if n := wrong.Load(); n > 0 || c.Stats().Pool.InUse != 0 {
		t.Errorf("%d calls did not end as canceled, %d places are in use, want 0 and 0", n, c.Stats().Pool.InUse)
	}
}

// inUse is the memory in use after a collection in bytes, stacks included.
func inUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// hanging is an upstream in a process of its own, so that memory, goroutines and file descriptors of the test are the
// client's alone.
type hanging struct {
	url    string
	stdin  io.Writer
	stdout *bufio.Reader
}

const hangingEnv = "FERRY_HTTPX_TEST_HANGING"

func startHanging(t *testing.T) *hanging {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), hangingEnv+"=1"), os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close() // ends it
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	h := &hanging{stdin: stdin, stdout: bufio.NewReader(stdout)}
	h.url = h.line(t)
	return h
}

func (h *hanging) line(t *testing.T) string {
	t.Helper()
	line, err := h.stdout.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// await asks for a figure until it is n.
func (h *hanging) await(t *testing.T, figure string, n int) {
	t.Helper()
	for range 3000 {
		fmt.Fprintln(h.stdin, figure)
		if got, err := strconv.Atoi(h.line(t)); err == nil && got == n {
			return
		}
	}
	t.Fatalf("the server never had %d %s", n, figure)
}

// serveHanging accepts requests and answers none. It prints its URL, then a figure for each line it reads.
func serveHanging() {
	var open, inside atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		inside.Add(1)
		<-r.Context().Done()
	}))
	server.Config.ConnState = countOpen(&open)
	server.Config.ErrorLog = silent
	server.Start()
	fmt.Println(server.URL)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		time.Sleep(10 * time.Millisecond) // the pace of the questions: leave the processors to the calls
		switch lines.Text() {
		case "open":
			fmt.Println(open.Load())
		case "inside":
			fmt.Println(inside.Load())
		}
	}
	server.CloseClientConnections()
	server.Close()
}
