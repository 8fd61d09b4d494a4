package e2e_test

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// settle is how long a fleet must have run for a crash to be found as fast as it ever is: by the time the dead worker's
// leases look old, the caretaker has watched Redis for long enough to judge them.
const settle = 8 * time.Second

// wantOrphans fails the test unless some jobs, but no more than limit, have lost their worker since the fault, have
// spent no attempt on that, and have ended soon.
func wantOrphans(t *testing.T, r *row, limit int, within time.Duration) {
	t.Helper()
	orphans := r.orphans()
	if len(orphans) == 0 || len(orphans) > limit {
		t.Errorf("%d jobs lost their worker, want 1 to %d, as many as it had", len(orphans), limit)
	}
	for _, job := range orphans {
		if job.Attempts != 1 {
			t.Errorf("job %s has spent %d attempts, want 1: a crash costs none:\n%s", job.ID, job.Attempts, show(job))
		}
	}
	if len(orphans) == 0 {
		return
	}
	if took := lastEnd(orphans).Sub(r.struck); took > within {
		t.Errorf("the last orphan ended %s after the crash, want at most %s", took, within)
	}
}

func TestFaultWorkerKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	fault{
		name: "worker_killed_1_of_2", options: faultOptions(), before: settle,
		strike: func(s *system) { s.kill(s.workers[0]) },
		also:   func(t *testing.T, r *row) { wantOrphans(t, r, faultPlaces(), 20*time.Second) },
	}.run(t)
}

// Those who come after a whole fleet has died look at Redis for a while before they take anybody for dead.
func TestFaultWorkersKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	fault{
		name: "worker_killed_2_of_2", options: faultOptions(),
		strike: func(s *system) {
			for _, w := range s.workers {
				w.kill(s.t)
			}
			pass(s.t, 2*time.Second)
			for _, w := range s.workers {
				s.restart(w)
			}
		},
		also: func(t *testing.T, r *row) { wantOrphans(t, r, 2*faultPlaces(), 30*time.Second) },
	}.run(t)
}

// A worker that stands still, as a paused container does, is taken for dead. When it goes on it has answers
// for jobs that others have ended by then, and these must stand.
func TestFaultWorkerFrozen(t *testing.T) {
	t.Parallel()                   // it mostly waits
	const lease = 30 * time.Second // asynq's
	fault{
		name: "worker_frozen", options: faultOptions(), before: settle,
		strike: func(s *system) {
			s.workers[0].signal(s.t, syscall.SIGSTOP)
			s.t.Cleanup(func() { s.workers[0].signal(s.t, syscall.SIGCONT) })
			pass(s.t, lease+2*time.Second)
			s.workers[0].signal(s.t, syscall.SIGCONT)
		},
		also: func(t *testing.T, r *row) {
			wantOrphans(t, r, faultPlaces(), 20*time.Second)
			until(t, 30*time.Second, "the worker has noticed that it was overtaken", func() bool {
				return strings.Contains(r.workers[0].output(), "run was overtaken")
			})
			r.workers[0].stop(t, syscall.SIGTERM) // after this it writes no more
			for _, job := range r.jobs {
				if now := r.get(job.ID); string(now.RawJSON()) != string(job.RawJSON()) {
					t.Errorf("job %s has changed after its end:\n%s\nto\n%s", job.ID, show(job), show(now))
				}
			}
		},
	}.run(t)
}

// What an API has accepted outlives it, and the others go on.
func TestFaultAPIKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	fault{name: "api_killed_1_of_2", options: faultOptions(), strike: func(s *system) {
		s.apis[0].kill(s.t)
		s.clients = s.clients[1:]
	}}.run(t)
}

// A deployment replaces every process in turn, and nobody notices.
func TestFaultRollingRestart(t *testing.T) {
	t.Parallel() // it mostly waits
	fault{
		name: "rolling_restart", options: faultOptions(),
		strike: func(s *system) {
			for i := range s.workers {
				s.workers[i].stop(s.t, syscall.SIGTERM)
				s.restart(s.workers[i])
			}
			for i := range s.apis {
				s.apis[i].stop(s.t, syscall.SIGTERM)
				s.restart(s.apis[i])
			}
		},
		also: func(t *testing.T, r *row) {
			if _, calls := r.repeated(); calls > 0 {
				t.Errorf("%d calls were made again, want none: the drain is longer than any call", calls)
			}
		},
	}.run(t)
}
