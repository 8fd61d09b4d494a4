package redisserver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	lockName  = "redis-server.lock"
	lockWait  = 2 * time.Second // an orphan of a killed parent needs a moment to end
	pollEvery = 5 * time.Millisecond
	pollBound = 250 * time.Millisecond // for one PING
	tailSize  = 4 << 10
)

// child is one process. The lock on the directory is handed down to it, so the
// directory is free again exactly when parent and child have both let go: an
// orphan that still writes its file keeps a second server out.
type child struct {
	cmd  *exec.Cmd
	lock *os.File
	tail *tail
	done chan struct{} // closed after the process was waited for
}

// newChild locks cfg.Dir and starts the process.
func newChild(ctx context.Context, binary string, args []string, cfg Config) (*child, error) {
	lock, err := acquire(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	c := &child{lock: lock, tail: &tail{next: cfg.Log}, done: make(chan struct{})}
	c.cmd = exec.CommandContext(context.WithoutCancel(ctx), binary, args...) // ctx bounds the start only
	c.cmd.Dir = cfg.Dir
	c.cmd.Stdout, c.cmd.Stderr = c.tail, c.tail
	c.cmd.ExtraFiles = []*os.File{lock}
	c.cmd.WaitDelay = time.Second // a rewrite child may hold the output open
	isolate(c.cmd)
	started := make(chan error)
	go c.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("redisserver: start: %w", err)
	}
	return c, nil
}

// run starts the process and waits for it on one locked thread, because Linux
// sends the parent-death signal when the starting thread ends, not the process.
func (c *child) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.done)
	defer c.lock.Close()
	err := c.cmd.Start()
	if err == nil {
		_ = note(c.lock, os.Getpid(), c.cmd.Process.Pid) // only read by people
	}
	started <- err
	if err == nil {
		_ = c.cmd.Wait() // how it ended is in its output
	}
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// waitReady returns when the child answers PING at addr, and an error when it
// ends before or ctx does. An answer counts only from our process: the port
// may belong to another Redis.
func (c *child) waitReady(ctx context.Context, addr string) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if pid, err := ping(ctx, addr); err == nil {
			if pid == c.pid() {
				return nil
			}
			return fmt.Errorf("%w: %s is served by process %d", errPortTaken, addr, pid)
		}
		select {
		case <-c.done:
			return c.exitError(addr)
		case <-ctx.Done():
			return fmt.Errorf("redisserver: %s does not answer: %w", addr, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// exitError explains a child that ended before it was ready.
func (c *child) exitError(addr string) error {
	out := c.tail.String()
	if strings.Contains(out, "Address already in use") {
		return fmt.Errorf("%w: %s", errPortTaken, addr)
	}
	return fmt.Errorf("redisserver: redis-server ended with %v: %s", c.cmd.ProcessState, out)
}

// stop ends the child politely, then firmly.
func (c *child) stop(ctx context.Context) error {
	if c.ended() {
		return nil
	}
	if err := errors.Join(c.signal(sigStop), c.signal(sigResume)); err != nil {
		return err
	}
	bound := time.NewTimer(stopGrace)
	defer bound.Stop()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("redisserver: killed before it had stopped: %w", context.Cause(ctx)), c.kill())
	case <-bound.C:
		return errors.Join(fmt.Errorf("redisserver: killed, it did not stop within %s", stopGrace), c.kill())
	}
}

func (c *child) kill() error {
	if err := c.signal(os.Kill); err != nil {
		return err
	}
	<-c.done
	return nil
}

// signal sends sig; a child that has ended has nothing left to be told.
func (c *child) signal(sig os.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("redisserver: signal %v: %w", sig, err)
	}
	return nil
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// acquire takes the lock of dir. It waits up to lockWait for a server that is
// about to end, e.g. the orphan of a killed parent.
func acquire(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("redisserver: lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := tryLock(f)
		switch {
		case err != nil:
			return nil, errors.Join(fmt.Errorf("redisserver: lock %s: %w", path, err), f.Close())
		case ok:
			return f, nil
		}
		select {
		case <-ctx.Done():
			holder, _ := os.ReadFile(path) // for the message only
			return nil, errors.Join(fmt.Errorf("%w: %s is held by %s: stop it, or choose another directory",
				ErrInUse, dir, cmp.Or(strings.TrimSpace(string(holder)), "another process")), f.Close())
		case <-tick.C:
		}
	}
}

// note writes who holds the lock into it, for the message of whoever is refused.
func note(lock *os.File, parent, child int) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt(fmt.Appendf(nil, "process %d (redis-server %d)\n", parent, child), 0)
	return err
}

// freeAddr finds a free port below the range that Linux and macOS give to
// outgoing connections: a client that keeps dialling a stopped server's port
// inside that range connects to itself sooner or later, and the port is gone.
func freeAddr(ctx context.Context) (string, error) {
	const low, high = 16384, 32768
	var lc net.ListenConfig
	var last error
	for range 4 * portTries {
		addr := net.JoinHostPort(host, strconv.Itoa(low+rand.IntN(high-low)))
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			last = err
			continue
		}
		return addr, l.Close()
	}
	return "", fmt.Errorf("redisserver: no free port: %w", last)
}

// ping asks the server at addr for PONG and for its process id. A server that
// is still loading its file refuses the PING.
func ping(ctx context.Context, addr string) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollBound)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // a conn without deadlines does not exist in net
	}
	if _, err := io.WriteString(conn, "PING\r\nINFO server\r\n"); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(conn)
	if lines.Scan(); lines.Text() != "+PONG" {
		return 0, fmt.Errorf("redisserver: PING answered by %q", lines.Text())
	}
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "process_id:"); ok {
			return strconv.Atoi(id)
		}
	}
	return 0, errors.Join(errors.New("redisserver: INFO has no process_id"), lines.Err())
}

// tail passes output on and remembers the end of it for error messages.
type tail struct {
	next io.Writer

	mu  sync.Mutex // guards end
	end []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.end = append(t.end, p...)
	if extra := len(t.end) - tailSize; extra > 0 {
		t.end = append(t.end[:0], t.end[extra:]...)
	}
	t.mu.Unlock()
	return t.next.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.end))
}
