package e2e_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// narrowConfig keeps a queue in front of the workers. $DRAIN is how long a worker lets its calls go on.
const narrowConfig = `
worker: {drain: $DRAIN, concurrency: 8}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`

func narrow(drain string) string { return strings.ReplaceAll(narrowConfig, "$DRAIN", drain) }

// busy waits until both workers have all the calls they may have.
func (s *system) busy() {
	s.t.Helper()
	until(s.t, 30*time.Second, "both workers are busy", func() bool { return s.upstream.InFlight() == 16 })
}

func TestStoppedWorkerFinishesItsCalls(t *testing.T) {
	t.Parallel() // it mostly waits
	const drain = 10 * time.Second
	s := start(t, options{
		workers: 2, config: narrow(drain.String()),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=1s")},
	})
	jobs := s.submitAll(80, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	s.busy()
	took := s.workers[0].stop(t, syscall.SIGTERM)
	figure(t, "drain_calls_of_2s_took", took)
	if took > drain {
		t.Errorf("the worker took %s to stop, want at most the drain of %s", took, drain)
	}
	ended := s.waitAll(jobs, time.Minute)
	wantState(t, ended, client.StateSucceeded)
	for _, job := range ended {
		if n := s.upstream.Tally(job.ID).Requests; n != 1 {
			t.Errorf("job %s was sent to the upstream %d times, want once:\n%s", job.ID, n, show(job))
		}
	}
}

func TestStoppedWorkerHandsLongCallsBack(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{
		workers: 2, config: narrow("500ms"),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=3s")},
	})
	jobs := s.submitAll(40, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	s.busy()
	took := s.workers[0].stop(t, syscall.SIGTERM)
	figure(t, "drain_cut_short_took", took)
	if took > 3*time.Second {
		t.Errorf("the worker took %s to stop, want about the drain of 500ms", took)
	}
	ended := s.waitAll(jobs, time.Minute)
	wantState(t, ended, client.StateSucceeded)
	handedBack := 0
	for _, job := range ended {
		if s.upstream.Tally(job.ID).Requests > 1 {
			handedBack++
		}
	}
	figure(t, "drain_cut_short_handed_back", handedBack)
	if handedBack == 0 || handedBack > 8 {
		t.Errorf("%d jobs were handed back, want 1 to 8, as many as the worker had", handedBack)
	}
}
