package e2e_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

// jumps are how far clocks are set wrong.
func jumps() map[string]time.Duration {
	return map[string]time.Duration{"ahead": time.Hour, "back": -time.Hour}
}

// clockConfig has a breaker that is never open for long, so that one that stays open is seen.
const clockConfig = `
worker: {drain: 10s, concurrency: $PLACES}
jobs:
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 1s, max_open_for: 5s, ramp: 1s}
`

// Redis' clock jumps while the breaker is open, whose times are Redis'.
func TestFaultRedisClock(t *testing.T) {
	t.Parallel() // it mostly waits
	needProcesses(t)
	for name, jump := range jumps() {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			clock := newSkew(t)
			binary := clock.redisServer()
			f := pairFault("redis_clock_"+name, func(s *system) {
				began := time.Now()
				s.upstream.Down()
				s.awaitChange(began, "open", 20*time.Second)
				clock.set(jump)
				pass(s.t, 2*time.Second)
				s.upstream.Up()
			})
			f.jobs, f.limit = fewer(), time.Minute
			f.options.config = fill(clockConfig, "$PLACES", places())
			f.options.redis = func(c *redisserver.Config) { c.Binary = binary }
			f.run(t)
		})
	}
}

// The clocks of two workers jump one after the other, so that one of them is the caretaker's.
func TestFaultWorkerClock(t *testing.T) {
	t.Parallel() // it mostly waits
	needProcesses(t)
	if !long(false, true) {
		t.Skip("FERRY_E2E_LONG is not set: this compiles the standard library anew")
	}
	if err := buildSkewed(); err != nil {
		t.Fatal(err)
	}
	for name, jump := range jumps() {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			f := pairFault("worker_clock_"+name, func(s *system) {
				for _, clock := range s.replaceBySkewed() {
					pass(s.t, 2*settle)
					clock.set(jump)
					pass(s.t, 70*time.Second) // asynq looks for lost tasks each minute
					clock.set(0)
				}
			})
			f.limit, f.also = 5*time.Minute, (*row).wantNoCallAgain
			f.run(t)
		})
	}
}

// wantNoCallAgain fails the test if a call was made again. It is for faults in which no worker dies or loses its upstream.
func (r *row) wantNoCallAgain() {
	r.t.Helper()
	if _, calls := r.repeated(); calls > 0 {
		r.t.Errorf("%d calls were made again, want none", calls)
	}
}

// replaceBySkewed puts workers with clocks that can be wrong in the place of all others.
func (s *system) replaceBySkewed() (clocks []*skew) {
	s.t.Helper()
	right := s.workers
	s.workers = nil
	for i := range right {
		clock := newSkew(s.t)
		w := launch(s.t, fmt.Sprintf("%s%d", skewedWorker, i), s.dir, append(s.env, clock.env()), "--admin-addr", "127.0.0.1:0")
		w.await(s.t, workerAddress)
		clocks, s.workers = append(clocks, clock), append(s.workers, w)
	}
	for _, w := range right {
		w.stop(s.t, syscall.SIGTERM)
	}
	return clocks
}
