package e2e_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"
)

// moduleRoot is where "go build" finds the commands.
const moduleRoot = "../.."

// binDir is where the binaries go. TestMain makes and removes it.
var binDir string

// atOnce is how many of the tests that mostly wait run beside each other, unless -parallel says otherwise. By default
// it would be one for each CPU, and on a small machine they would wait in turn.
const atOnce = "4"

func TestMain(m *testing.M) {
	err := flag.Set("test.parallel", atOnce)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if binDir, err = os.MkdirTemp("", "ferry-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	logging.Disable() // go-redis tells of each failed dial, and here Redis is killed on purpose
	code := m.Run()
	_ = os.RemoveAll(binDir) // temporary anyway
	os.Exit(code)
}

// build makes the binaries, once per run of the tests.
var build = sync.OnceValue(func() error {
	if err := readSourceTree(); err != nil {
		return err
	}
	args := []string{"build", "-o", binDir}
	if raceDetector {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/api", "./cmd/worker", "./cmd/ferry")...)
	cmd.Dir = moduleRoot
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
})

// readSourceTree looks at every directory the binaries come from. "go test" keeps a passing result until
// something the test read has changed, and it cannot see what the compiler reads.
func readSourceTree() error {
	for _, dir := range []string{"client", "cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(moduleRoot, dir), func(string, fs.DirEntry, error) error { return nil })
		if err != nil {
			return err
		}
	}
	return nil
}

// process is a child with what it has printed so far.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the child has been waited for

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

// The lines by which a process says where it listens.
var (
	apiAddress    = regexp.MustCompile(`"msg":"api listens","addr":"([^"]+)"`)
	workerAddress = regexp.MustCompile(`"msg":"worker runs","admin":"([^"]+)"`)
	devAddress    = regexp.MustCompile(`API +http://([^/]+)/v1/jobs`)
)

// launch starts a binary in dir with no more environment than is given. The test stops it at its end,
// unless it has ended by then.
func launch(t *testing.T, name, dir string, env []string, args ...string) *process {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, ended: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(binDir, strings.TrimRight(name, "0123456789")), args...)
	p.cmd.Dir = dir
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // exitCode has it
	}()
	t.Cleanup(func() { p.finish(t) })
	return p
}

// Write keeps what the child prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// output is what the child has printed so far.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// await returns the first group of a pattern once the child has printed it.
func (p *process) await(t *testing.T, pattern *regexp.Regexp) string {
	t.Helper()
	var found []string
	until(t, startLimit, p.name+" prints "+pattern.String(), func() bool {
		found = pattern.FindStringSubmatch(p.output())
		return found != nil || p.exited()
	})
	if found == nil {
		t.Fatalf("%s ended with code %d:\n%s", p.name, p.exitCode(), p.output())
	}
	return found[1]
}

func (p *process) exited() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// signal sends the child a signal; to one that has ended it does nothing.
func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%s: %v", p.name, err)
	}
}

// exitCode waits for the child's end; -1 is a signal.
func (p *process) exitCode() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the child by SIGTERM, as an orchestrator does, or by SIGINT, as Ctrl-C does. It wants exit code 0,
// and returns how long that took.
func (p *process) stop(t *testing.T, by os.Signal) time.Duration {
	t.Helper()
	began := time.Now()
	p.signal(t, by)
	select {
	case <-p.ended:
	case <-time.After(stopLimit):
		p.signal(t, syscall.SIGKILL)
		t.Errorf("%s did not end within %s of %s", p.name, stopLimit, by)
	}
	if code := p.exitCode(); code != 0 {
		t.Errorf("%s: exit code %d after %s, want 0", p.name, code, by)
	}
	return time.Since(began)
}

// kill ends the child as a crash does.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	if code := p.exitCode(); code != -1 {
		t.Fatalf("%s ended by itself, with code %d", p.name, code)
	}
}

// finish is the child's end with the test: its log is shown if the test failed.
func (p *process) finish(t *testing.T) {
	if !p.exited() {
		p.stop(t, syscall.SIGTERM)
	}
	out := p.output()
	if strings.Contains(out, "DATA RACE") {
		t.Errorf("%s: data race", p.name)
	}
	if t.Failed() {
		t.Logf("%s (pid %d) printed:\n%s", p.name, p.cmd.Process.Pid, remarkable(out))
	}
}

const shownLines = 60

// remarkable are the lines of a log that tell of trouble, and its last ones.
func remarkable(out string) string {
	lines := strings.SplitAfter(out, "\n")
	tail := max(0, len(lines)-shownLines)
	var b strings.Builder
	shown := 0
	for _, line := range lines[:tail] {
		if routine := strings.Contains(line, `"level":"INFO"`); !routine && shown < shownLines {
			b.WriteString(line)
			shown++
		}
	}
	fmt.Fprintf(&b, "... last %d of %d lines:\n", len(lines)-tail, len(lines))
	b.WriteString(strings.Join(lines[tail:], ""))
	return b.String()
}
