package e2e_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// places are what each worker of a pair has: few enough that a fault finds most of its jobs still waiting.
func places() int { return long(48, 256) }

const pairConfig = `
worker: {drain: 10s, concurrency: $PLACES}
jobs:
  backoff: {base: 200ms, max: 2s}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`

// pairFault strikes two APIs and two workers that are busy with calls of 1 to 2 s.
func pairFault(name string, strike func(s *system)) fault {
	return fault{
		name: name, strike: strike,
		options: options{
			apis: 2, workers: 2, config: fill(pairConfig, "$PLACES", places()),
			upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=1s")},
		},
		inFlight: places(), // half of them: a place is empty for a moment between two jobs
	}
}

// settle is how long a fleet must have run for a crash to be found as fast as it ever is: by the time the dead worker's
// leases look old, the caretaker has watched Redis for long enough to judge them.
const settle = 8 * time.Second

// wantOrphans fails the test unless some jobs, but no more than limit, have lost their worker, have spent no attempt on
// that, and have ended soon after the fault.
func (r *row) wantOrphans(limit int, within time.Duration) {
	r.t.Helper()
	orphans := r.orphans()
	if len(orphans) == 0 || len(orphans) > limit {
		r.t.Fatalf("%d jobs lost their worker, want 1 to %d, as many as it had", len(orphans), limit)
	}
	for _, job := range orphans {
		if job.Attempts != 1 {
			r.t.Errorf("job %s has spent %d attempts, want 1: a crash costs none:\n%s", job.ID, job.Attempts, show(job))
		}
	}
	if took := lastEnd(orphans).Sub(r.struck); took > within {
		r.t.Errorf("the last orphan ended %s after the crash, want at most %s", took, within)
	}
}

func TestFaultWorkerKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	f := pairFault("worker_killed_1_of_2", func(s *system) { s.kill(s.workers[0]) })
	f.before = settle
	f.also = func(r *row) { r.wantOrphans(places(), 25*time.Second) }
	f.run(t)
}

// Those who come after a whole fleet has died look at Redis for a while before they take anybody for dead.
func TestFaultWorkersKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	f := pairFault("worker_killed_2_of_2", func(s *system) {
		for _, w := range s.workers {
			w.kill(s.t)
		}
		pass(s.t, 2*time.Second)
		for _, w := range s.workers {
			s.restart(w)
		}
	})
	f.also = func(r *row) { r.wantOrphans(2*places(), 30*time.Second) }
	f.run(t)
}

// A worker that stands still, as a paused container does, is taken for dead. When it goes on it has answers
// for jobs that others have ended by then, and these must stand.
func TestFaultWorkerFrozen(t *testing.T) {
	t.Parallel()                   // it mostly waits
	const lease = 30 * time.Second // asynq's
	f := pairFault("worker_frozen", func(s *system) {
		frozen := s.workers[0]
		frozen.signal(s.t, syscall.SIGSTOP)
		s.t.Cleanup(func() { frozen.signal(s.t, syscall.SIGCONT) })
		pass(s.t, lease+2*time.Second)
		frozen.signal(s.t, syscall.SIGCONT)
	})
	f.before = settle
	f.also = func(r *row) {
		r.wantOrphans(places(), 25*time.Second)
		until(r.t, 30*time.Second, "the worker has noticed that it was overtaken", func() bool {
			return strings.Contains(r.workers[0].output(), "run was overtaken")
		})
		r.workers[0].stop(r.t, syscall.SIGTERM) // after this it writes no more
		for _, job := range r.jobs {
			if now := r.get(job.ID); string(now.RawJSON()) != string(job.RawJSON()) {
				r.t.Errorf("job %s has changed after its end:\n%s\nto\n%s", job.ID, show(job), show(now))
			}
		}
	}
	f.run(t)
}

// What an API has accepted outlives it, and the others go on.
func TestFaultAPIKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	pairFault("api_killed_1_of_2", func(s *system) {
		s.apis[0].kill(s.t)
		s.clients = s.clients[1:]
	}).run(t)
}

// A deployment replaces every process in turn, and no job notices.
func TestFaultRollingRestart(t *testing.T) {
	t.Parallel() // it mostly waits
	f := pairFault("rolling_restart", func(s *system) {
		for i := range s.workers {
			s.workers[i].stop(s.t, syscall.SIGTERM)
			s.restart(s.workers[i])
		}
		for i := range s.apis {
			s.apis[i].stop(s.t, syscall.SIGTERM)
			s.restart(s.apis[i])
		}
	})
	f.also = (*row).wantNoCallAgain // the drain is longer than any call
	f.run(t)
}
