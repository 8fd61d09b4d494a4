package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// spoolDir is the default of worker.spool_dir.
const spoolDir = ".ferry/spool"

// Answers come in while Redis is away, and the disk on which they wait has no room for them all. Those wait in memory.
func TestFaultDiskFull(t *testing.T) {
	t.Parallel() // it mostly waits
	needProcesses(t)
	binary := smallDisk(t)
	f := pairFault("disk_full", func(s *system) {
		roomy := s.workers
		s.workers = nil
		for i := range roomy {
			w := launch(s.t, fmt.Sprintf("%s%d", binary, i), s.dir, s.env, "--admin-addr", "127.0.0.1:0")
			w.await(s.t, workerAddress)
			s.workers = append(s.workers, w)
		}
		for _, w := range roomy {
			w.stop(s.t, syscall.SIGTERM)
		}
		until(s.t, 10*time.Second, "the upstream is called", func() bool { return s.upstream.InFlight() >= places() })
		s.shutRedis()
		until(s.t, 10*time.Second, "the calls in flight are answered", func() bool { return s.upstream.InFlight() == 0 })
		pass(s.t, 3*time.Second) // the answers find their place
		s.restartRedis()
	})
	f.also = func(r *row) {
		r.wantNoCallAgain()
		for _, name := range []string{"ferry_spool_delivered_total", "ferry_spool_failures_total"} {
			if r.metric(r.workers[0], name)+r.metric(r.workers[1], name) == 0 {
				r.t.Errorf("%s is 0, want some answers that found room on disk and some that did not", name)
			}
		}
	}
	f.run(t)
}

// smallDisk makes a program that is the worker with a file system of its own for its answers, which has room for a few.
// It returns its name for launch.
func smallDisk(t *testing.T) (name string) {
	t.Helper()
	const unshare = "unshare --user --map-root-user --mount"
	if runtime.GOOS != "linux" {
		t.Skip("file systems are mounted for one process the Linux way")
	}
	if out, err := exec.Command("sh", "-c", unshare+" true").CombinedOutput(); err != nil {
		t.Skipf("this machine forbids to mount a file system for one process: %v: %s", err, out)
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nmkdir -p " + spoolDir + " && exec " + unshare +
		" sh -c 'mount -t tmpfs -o size=64k ferry " + spoolDir + ` && exec "$0" "$@"' ` + filepath.Join(binDir, "worker") + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(binDir, "cramped"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return "cramped"
}
