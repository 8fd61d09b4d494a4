package e2e_test

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// An answer that has been paid for outlives the worker that has it, although Redis is away all the while:
// whether the worker is stopped or killed, and whether it comes back or another one is there.
func TestAnswersOutliveTheirWorkerWithoutRedis(t *testing.T) {
	tests := []struct {
		name   string
		end    syscall.Signal
		others int // workers on the same machine that stay
	}{
		{"stopped and started again", syscall.SIGTERM, 0},
		{"killed and started again", syscall.SIGKILL, 0},
		{"killed, and another takes over", syscall.SIGKILL, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const jobs = 30
			s := start(t, options{workers: 1, upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=2s")}})
			submitted := s.submitAll(jobs, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
			until(t, 10*time.Second, "all calls are made", func() bool { return s.upstream.Requests() == jobs })
			first := s.workers[0]
			for range tt.others {
				s.startWorker().await(t, workerAddress)
			}
			gone := time.Now()
			if err := s.redis.Kill(); err != nil {
				t.Fatal(err)
			}
			until(t, 20*time.Second, "all answers are on disk", func() bool { return s.onDisk() == jobs })
			figure(t, "outage_to_all_on_disk", time.Since(gone))
			if tt.end == syscall.SIGTERM {
				figure(t, "sigterm_without_redis", first.stop(t, tt.end))
			} else {
				first.signal(t, tt.end)
				first.exitCode()
			}
			if tt.others == 0 {
				s.startWorker()
			}
			if err := s.redis.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			wantState(t, s.waitAll(submitted, time.Minute), client.StateSucceeded)
			figure(t, "redis_back_to_all_delivered", time.Since(back))
			for _, job := range submitted {
				if n := s.upstream.Tally(job.ID).Answers; n != 1 {
					t.Errorf("job %s: %d answers of the upstream, want 1", job.ID, n)
				}
			}
		})
	}
}

// onDisk is how many answers the workers keep there.
func (s *system) onDisk() int {
	found, err := filepath.Glob(filepath.Join(s.dir, ".ferry", "spool", "*", "*.entry"))
	if err != nil {
		s.t.Error(err)
	}
	return len(found)
}
