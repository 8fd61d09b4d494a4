package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// probingConfig has a breaker that never leaves its upstream alone for long, and a fleet that has always a job at
// hand to probe with. $PROBES is how many probes it may make at once.
const probingConfig = `
worker: {concurrency: 16, drain: 1s}
jobs:
  max_attempts: 1000
  backoff: {base: 100ms, max: 1s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 300ms, max_open_for: 300ms, probes: $PROBES, probe_lease: 2s}
    policies:
      chat: {max_attempts: 1}
`

// Every probe fails after 150 ms, so each half-open period of the fleet is seen at the upstream as its probes.
func TestBreakerProbesAreTheFleets(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, probes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d at once", probes), func(t *testing.T) {
			s := start(t, options{
				workers: fleetSize, config: fill(probingConfig, "$PROBES", probes),
				upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("503=1,latency=150ms")},
			})
			began := time.Now()
			s.submitAll(200, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
			s.awaitChange(began, "open", 10*time.Second)
			until(t, 5*time.Second, "the calls from before are over", func() bool { return s.upstream.InFlight() == 0 })
			s.upstream.Reset()

			since, cycles := time.Now(), long(6, 20)
			until(t, 2*time.Minute, fmt.Sprintf("%d half-open periods", cycles), func() bool {
				return len(s.workers[0].periods(since, "half-open")) >= cycles
			})
			most := s.upstream.MaxInFlight()
			if most > probes {
				t.Errorf("%d probes at the same time, want at most %d in the whole fleet", most, probes)
			}
			if n := s.upstream.Requests(); n > int64((cycles+1)*probes) {
				t.Errorf("%d probes in %d periods, want at most %d in each: the first that fails ends it", n, cycles, probes)
			}
			figure(t, fmt.Sprintf("probes_%d_cycles", probes), cycles)
			figure(t, fmt.Sprintf("probes_%d_at_once_at_most", probes), most)
			figure(t, fmt.Sprintf("probes_%d_in_all", probes), s.upstream.Requests())
		})
	}
}

// The holder of the only permit is killed while its probe hangs, again and again. Nobody may probe beside it, and
// somebody must after it.
func TestBreakerProbeOutlivesItsWorker(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{
		workers: fleetSize, config: fill(probingConfig, "$PROBES", 1),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("503=1")},
	})
	began := time.Now()
	s.submitAll(400, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	s.awaitChange(began, "open", 10*time.Second)
	s.upstream.SetFaults(upstreamtest.MustParseFaults("timeout=1"))
	until(t, 10*time.Second, "a probe hangs", func() bool { return s.upstream.InFlight() == 1 })

	var slowest time.Duration
	kills := long(2, 5)
	for range kills {
		killed := s.killProber()
		until(t, 10*time.Second, "another worker probes", func() bool { return s.upstream.InFlight() == 1 })
		slowest = max(slowest, time.Since(killed))
	}
	figure(t, "probe_holder_kills", kills)
	figure(t, "probe_holder_killed_to_next_probe_at_most", slowest)
	if most := s.upstream.MaxInFlight(); most > fleetSize*16 {
		t.Errorf("%d calls at once, more than the fleet has places", most)
	}
}

// killProber kills workers until the probe that hangs at the upstream is gone, and starts others for them. While it
// does it sees to it that there is never a second probe. It returns when the probe's worker was killed.
func (s *system) killProber() time.Time {
	s.t.Helper()
	for {
		victim := s.workers[0]
		s.startWorker().await(s.t, workerAddress)
		s.kill(victim)
		killed := time.Now()
		for time.Since(killed) < 300*time.Millisecond {
			switch n := s.upstream.InFlight(); {
			case n == 0:
				return killed
			case n > 1:
				s.t.Fatalf("%d probes at the same time, want 1", n)
			}
			pass(s.t, 5*time.Millisecond)
		}
	}
}

// fuseConfig lets a call try on for long, so that calls in flight meet the outage of their upstream while Redis is
// away as well.
const fuseConfig = `
worker: {concurrency: 32}
jobs:
  max_attempts: 1000
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    budget: {off: true}
    breaker: {open_for: 1s, max_open_for: 2s, ramp: 1s}
    policies:
      chat:
        max_attempts: 100
        max_inline: 1s
        total: 2m
        backoff: {base: 20ms, max: 50ms, jitter: none}
`

// Redis goes away under load. What is at the upstream is answered and kept; then the upstream goes too, and each
// worker's own fuse keeps the calls that are left from hammering it.
func TestBreakerWithoutRedis(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{
		workers: fleetSize, config: fuseConfig,
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=4s")},
	})
	jobs := s.submitAll(long(400, 1500), func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	places := fleetSize * 32
	until(t, 30*time.Second, "all places are taken", func() bool { return s.upstream.InFlight() == places })
	away, gone := long(5*time.Second, 20*time.Second), time.Now()
	if err := s.redis.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	inFlight := s.upstream.InFlight()
	s.awaitChange(gone, "closed", 5*time.Second) // by redis_gone, to the fuse
	until(t, 5*time.Second, "some of the calls in flight are answered", func() bool { return s.upstream.InFlight() <= places*3/4 })

	s.upstream.Down()
	down, before := time.Now(), s.arrivals()
	opened := s.awaitChange(down, "open", 5*time.Second)
	pass(t, away-time.Since(gone))
	hammered := s.arrivals() - before
	if err := s.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	s.upstream.Up()

	ended := s.waitAll(jobs, 2*time.Minute)
	wantState(t, ended, client.StateSucceeded)
	for _, w := range s.workers {
		if !w.saw(back, "redis_back") {
			t.Errorf("%s: the fleet's verdict has not come back", w.name)
		}
	}
	answeredTwice := 0
	for _, job := range ended {
		again := max(0, s.upstream.Tally(job.ID).Answers-1)
		answeredTwice += min(1, again)
		// An answer can cross with the reset of its connection; the ledger says so.
		if again > countAttempts(job, unknown) {
			t.Errorf("job %s was answered again although its answer had come: it was not kept:\n%s", job.ID, show(job))
		}
	}
	// A fuse opens after 20 failures in a row; what is at the upstream by then fails beside them.
	if limit := int64(fleetSize*(openAfter+32)) + int64(away/time.Second); hammered > limit {
		t.Errorf("%d calls to an upstream known to be down, want at most %d", hammered, limit)
	}
	figure(t, "redis_gone_for", away)
	figure(t, "redis_gone_calls_in_flight", inFlight)
	figure(t, "redis_gone_answered_twice", answeredTwice)
	figure(t, "redis_gone_fuses_open_after", latest(opened).Sub(down))
	figure(t, "redis_gone_calls_to_dead_upstream", hammered)
	figure(t, "redis_back_to_last_end", lastEnd(ended).Sub(back))
}

// An outage is not answered with more calls than the health before it, but with nearly none.
func TestBreakerSparesADeadUpstream(t *testing.T) {
	t.Parallel() // it mostly waits
	s := start(t, options{workers: fleetSize, config: `
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`, upstream: upstreamtest.Config{KeepJournal: 1}})
	const perSecond = 100
	l := s.startLoad(perSecond)
	pass(t, 3*time.Second)
	outage, down := long(15*time.Second, 5*time.Minute), time.Now()
	before, offered := s.arrivals(), l.count()
	s.upstream.Down()
	pass(t, time.Second)
	opening := s.arrivals() - before
	pass(t, outage-time.Since(down))
	calls := s.arrivals() - before
	offered = l.count() - offered
	s.upstream.Up()
	up := time.Now()
	ended := s.waitAll(l.stop(), 4*time.Minute)
	wantState(t, ended, client.StateSucceeded)

	share := 100 * float64(calls-opening) / float64(offered)
	if long(false, true) {
		share = 100 * float64(calls) / float64(offered) // the first second is as long in a short outage, and weighs more
	}
	if share >= 1 {
		t.Errorf("%d calls during the outage, %d of them in its first second: %.2f %% of %d jobs offered, want less than 1 %%",
			calls, opening, share, offered)
	}
	figure(t, "amplification_outage", outage)
	figure(t, "amplification_jobs_offered", offered)
	figure(t, "amplification_calls_in_first_second", opening)
	figure(t, "amplification_calls", calls)
	figure(t, "amplification_percent", fmt.Sprintf("%.2f", 100*float64(calls)/float64(offered)))
	figure(t, "amplification_end_to_last_job", lastEnd(ended).Sub(up))
}
