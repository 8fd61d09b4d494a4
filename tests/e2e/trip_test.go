package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// steadyConfig lets a fleet make as many calls a second as it has places, with an upstream that takes 100 ms. A
// failed job comes back late, so that what the upstream gets are new jobs.
const steadyConfig = `
worker: {concurrency: $PLACES}
jobs:
  max_attempts: 1000
  backoff: {base: 1m, max: 5m}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    policies:
      chat: {max_attempts: 1}
`

// steady starts a fleet of workers that finds more jobs than it can call for, and waits until it is at speed.
func steady(t *testing.T, places, jobs int, faults string) *system {
	t.Helper()
	s := start(t, options{apis: 2, config: fill(steadyConfig, "$PLACES", places), upstream: upstreamtest.Config{
		Faults: upstreamtest.MustParseFaults("latency=100ms," + faults), KeepJournal: 1,
	}})
	s.submitAll(jobs, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	for range fleetSize {
		s.startWorker()
	}
	for _, w := range s.workers {
		w.await(t, workerAddress)
	}
	until(t, 10*time.Second, "all places are taken", func() bool { return s.upstream.InFlight() >= fleetSize*places*9/10 })
	return s
}

// The health of the seconds before must not hide an outage that begins at speed.
func TestBreakerOpensWithinASecondAtSpeed(t *testing.T) {
	const rate = 450 // calls a second: 15 places in each of 3 workers, 100 ms each
	tests := []struct {
		failing string
		share   string
		limit   time.Duration // from the first failure to the last worker that refuses; the first second is the upstream's
	}{
		{"60", "0.6", 5 * time.Second}, // the limit itself: every other second is below it by chance
		{"70", "0.7", 2 * time.Second},
		{"100", "1", time.Second},
	}
	for _, tt := range tests[:long(1, len(tests))] {
		t.Run(tt.failing+" percent", func(t *testing.T) {
			var refused []time.Duration
			for range long(1, 3) {
				refused = append(refused, timeToRefusal(t, rate, "503="+tt.share))
			}
			slices.Sort(refused)
			figure(t, "opens_at_"+tt.failing+"_percent_median", percentile(refused, 50))
			figure(t, "opens_at_"+tt.failing+"_percent_worst", refused[len(refused)-1])
			if worst := refused[len(refused)-1]; worst > tt.limit {
				t.Errorf("the last worker refuses calls %s after the first failure, want within %s", worst, tt.limit)
			}
		})
	}
}

// timeToRefusal lets an upstream fail after seconds of health, and returns how long it took until the last worker
// refused to call it. What the upstream gets afterwards are the probes.
func timeToRefusal(t *testing.T, rate int, faults string) time.Duration {
	t.Helper()
	health := long(3*time.Second, 6*time.Second)
	s := steady(t, rate/fleetSize/10, rate*long(10, 14), "retry_after=1s")
	pass(t, health)
	began := time.Now()
	s.upstream.SetFaults(upstreamtest.MustParseFaults("latency=100ms," + faults))
	refused := latest(s.awaitChange(began, "open", 30*time.Second))
	pass(t, 300*time.Millisecond) // what was in flight is over
	before := s.arrivals()
	pass(t, 2*time.Second)
	if n := s.arrivals() - before; n > 1 {
		t.Errorf("%d calls reached the upstream in the 2s after all workers had refused, want none", n)
	}
	return refused.Sub(began)
}

// A few failures at speed are no outage. go-resiliency's breaker, which counts failures and not their share, opens at
// 0.55 % of calls like these.
func TestBreakerStaysClosedAtAFewFailures(t *testing.T) {
	const places = 40
	over := long(3*time.Second, time.Minute)
	s := steady(t, places, int(over.Seconds())*1200+1000, "503=0.02")
	began, before := time.Now(), s.upstream.Requests()
	pass(t, over)
	calls := s.upstream.Requests() - before
	for _, w := range s.workers {
		if c, ok := w.firstChange(began, "open"); ok {
			t.Errorf("%s: the breaker opened at 2 %% failures: %+v", w.name, c)
		}
	}
	figure(t, "stays_closed_for", over)
	figure(t, "stays_closed_calls_per_second", int(float64(calls)/over.Seconds()))
}
