package e2e_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// skew is how wrong a program's clock is: a number of seconds in a file that the program has mapped into its memory.
type skew struct {
	t    *testing.T
	path string
}

func newSkew(t *testing.T) *skew {
	t.Helper()
	s := &skew{t, filepath.Join(t.TempDir(), "clock")}
	s.set(0)
	return s
}

// set makes the clock jump.
func (s *skew) set(by time.Duration) {
	s.t.Helper()
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE, 0o600) // the file that is mapped must stay
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := binary.Write(f, binary.NativeEndian, int64(by/time.Second)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *skew) env() string { return "FERRY_TEST_CLOCK=" + s.path }

const skewDir = "testdata/skew"

// redisServer is the path of a redis-server with this clock.
func (s *skew) redisServer() string {
	s.t.Helper()
	if runtime.GOOS != "linux" {
		s.t.Skip("the clock is put before the C library's the Linux way")
	}
	library := filepath.Join(s.t.TempDir(), "skew.so")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", library, skewDir+"/skew.c").CombinedOutput(); err != nil {
		s.t.Fatalf("cc: %v\n%s", err, out)
	}
	script := fmt.Sprintf("#!/bin/sh\nexport LD_PRELOAD=%s %s\nexec redis-server \"$@\"\n", library, s.env())
	binary := filepath.Join(s.t.TempDir(), "redis-server")
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return binary
}

// skewedWorker is the name of the worker's binary with a clock that can be wrong.
const skewedWorker = "skewed"

// buildSkewed makes that binary, once per run of the tests.
var buildSkewed = sync.OnceValue(func() error {
	list, err := skewOverlay()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-overlay", list, "-o", filepath.Join(binDir, skewedWorker), "./cmd/worker")
	cmd.Dir = moduleRoot
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build -overlay: %w\n%s", err, out)
	}
	return nil
})

// skewOverlay is the path of a list for the compiler of the files to use in package time.
func skewOverlay() (list string, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil {
		return "", err
	}
	const read = "sec, nsec, mono := runtimeNow()\n\tif mono == 0 {" // in Now, and nowhere else
	if strings.Count(string(source), read) != 1 {
		return "", fmt.Errorf("time.Now is not as it was in Go 1.26: %s", dir)
	}
	changed := filepath.Join(binDir, "time.go")
	text := strings.Replace(string(source), read, "sec, nsec, mono := runtimeNow()\n\tsec += skew()\n\tif mono == 0 {", 1)
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		return "", err
	}
	added, err := filepath.Abs(skewDir + "/skew.go")
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(dir, "time.go"): changed,
		filepath.Join(dir, "skew.go"): added,
	}})
	if err != nil {
		return "", err
	}
	list = filepath.Join(binDir, "overlay.json")
	return list, os.WriteFile(list, overlay, 0o600)
}
