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

// trustAfter is how long a fleet that has just started looks at Redis before it takes anybody for dead.
const trustAfter = 16 * time.Second

// busy waits until both workers have all the calls they may have.
func (s *system) busy() {
	s.t.Helper()
	until(s.t, 30*time.Second, "both workers are busy", func() bool { return s.upstream.InFlight() == 16 })
}

func TestKilledWorkerCostsNoJob(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{
		workers: 2, config: narrow("10s"),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=1s")},
	})
	pass(t, trustAfter)
	jobs := s.submitAll(120, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	s.busy()
	s.workers[0].signal(t, syscall.SIGKILL)
	killed := time.Now()
	if code := s.workers[0].exitCode(); code != -1 {
		t.Fatalf("the worker ended by itself, with code %d", code)
	}
	ended := s.waitAll(jobs, 2*time.Minute)
	wantState(t, ended, client.StateSucceeded)

	orphans := 0
	var last time.Time
	for _, job := range ended {
		if countAttempts(job, lost) == 0 {
			continue
		}
		orphans++
		if job.FinishedAt.After(last) {
			last = job.FinishedAt
		}
		if job.Attempts != 1 {
			t.Errorf("job %s has spent %d attempts, want 1: a crash costs none:\n%s", job.ID, job.Attempts, show(job))
		}
	}
	if orphans == 0 || orphans > 8 {
		t.Errorf("%d jobs lost their worker, want 1 to 8, as many as it had", orphans)
	}
	figure(t, "kill_orphans", orphans)
	figure(t, "kill_to_last_orphan_ended", last.Sub(killed))
	if took := last.Sub(killed); took > 20*time.Second {
		t.Errorf("the last orphan ended %s after the kill, want at most 20s", took)
	}
}

// A worker that stands still, as a paused container does, is taken for dead. When it goes on it has answers
// for jobs that others have ended by then, and these must stand.
func TestFrozenWorkerChangesNothingWhenItWakes(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{
		workers: 2, config: narrow("10s"),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=1s")},
	})
	pass(t, trustAfter)
	jobs := s.submitAll(60, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	s.busy()
	s.workers[0].signal(t, syscall.SIGSTOP)
	t.Cleanup(func() { s.workers[0].signal(t, syscall.SIGCONT) })
	ended := s.waitAll(jobs, 2*time.Minute)
	wantState(t, ended, client.StateSucceeded)

	s.workers[0].signal(t, syscall.SIGCONT)
	until(t, 30*time.Second, "the worker has noticed that it was overtaken", func() bool {
		return strings.Contains(s.workers[0].output(), "run was overtaken")
	})
	s.workers[0].stop(t, syscall.SIGTERM) // after this it writes no more
	orphans := 0
	for _, job := range ended {
		orphans += min(1, countAttempts(job, lost))
		if now := s.get(job.ID); string(now.RawJSON()) != string(job.RawJSON()) {
			t.Errorf("job %s has changed after its end:\n%s\nto\n%s", job.ID, show(job), show(now))
		}
	}
	if orphans == 0 {
		t.Error("no job lost its worker: the frozen one had none")
	}
	figure(t, "frozen_jobs_taken_over", orphans)
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

func TestAcceptedJobOutlivesItsAPI(t *testing.T) {
	t.Parallel() // no figures
	s := start(t, options{apis: 2, workers: 1})
	jobs := s.submitAll(200, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "latency=300ms") })
	s.apis[0].signal(t, syscall.SIGKILL)
	s.clients = s.clients[1:]
	wantState(t, s.waitAll(jobs, time.Minute), client.StateSucceeded)
}
