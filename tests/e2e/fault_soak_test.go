package e2e_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

const soakConfig = `
worker: {drain: 10s, concurrency: 64}
jobs:
  max_attempts: 100
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 500ms, max_open_for: 2s, ramp: 1s}
    policies:
      chat: {first_byte: 5s, attempt: 5s}
`

// TestFaultSoak breaks parts at random for the time that FERRY_SOAK_FOR says. FERRY_SOAK_SEED chooses the faults, their
// order and their lengths; equal seeds draw equal ones.
func TestFaultSoak(t *testing.T) {
	t.Parallel() // it mostly waits
	lasts, seed := soakSettings(t)
	t.Logf("FERRY_SOAK_FOR=%s FERRY_SOAK_SEED=%d", lasts, seed)
	s := start(t, options{
		apis: 2, workers: 3, config: soakConfig, wire: true,
		upstream: upstreamtest.Config{Faults: soakUpstream()},
	})
	r := &row{system: s, struck: time.Now()}
	const jobsPerSecond = 50
	r.clients = s.startClients(int(jobsPerSecond*submitEvery/time.Second), "")

	soak := &soak{system: s, until: r.struck.Add(lasts), longest: max(3*time.Second, lasts/60), struck: map[string]int{}}
	var lanes sync.WaitGroup
	for i, faults := range soakLanes() {
		lanes.Go(func() { soak.lane(faults, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	lanes.Wait()
	r.healed = time.Now()
	pass(t, time.Second)
	r.jobs, r.lost = s.waitLong(r.clients.stop(), 3*time.Minute)
	r.figure("soak")
	t.Logf("FIGURE name=soak_faults value=%s seed=%d for=%s", list(soak.struck), seed, lasts)
	figure(t, "soak_longest_from_accept_to_end", longestLife(r.ended()))
	r.check(fault{})
}

// soakSettings are the length and the seed, by default 25 s and any.
func soakSettings(t *testing.T) (lasts time.Duration, seed uint64) {
	t.Helper()
	lasts, seed = 25*time.Second, rand.Uint64()
	var err error
	if text := os.Getenv("FERRY_SOAK_FOR"); text != "" {
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("FERRY_SOAK_FOR: %v", err)
		}
	}
	if text := os.Getenv("FERRY_SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FERRY_SOAK_SEED: %v", err)
		}
	}
	return lasts, seed
}

func soakUpstream() upstreamtest.Faults {
	return upstreamtest.MustParseFaults("latency=100ms,jitter=900ms")
}

// longestLife is the longest time from the acceptance of a job to its end.
func longestLife(jobs []*client.Job) (life time.Duration) {
	for _, job := range jobs {
		life = max(life, job.FinishedAt.Sub(job.CreatedAt))
	}
	return life
}

// soak is what the lanes of a soak share.
type soak struct {
	*system
	until   time.Time
	longest time.Duration // of a fault; the quiet before it is up to twice that

	mu     sync.Mutex // guards struck
	struck map[string]int
}

// soakFault breaks one part for a while and heals it. which chooses among equal parts.
type soakFault struct {
	name   string
	strike func(s *system, which uint32, lasts time.Duration)
}

// soakLanes are the parts that can break at the same time: within a lane, one fault is healed before the next.
func soakLanes() [][]soakFault {
	return [][]soakFault{redisFaults(), processFaults(), upstreamFaults()}
}

// lane breaks its part again and again. What it draws does not depend on how long anything took.
func (s *soak) lane(faults []soakFault, rnd *rand.Rand) {
	for {
		quiet, lasts, which := s.draw(rnd)+s.draw(rnd), s.draw(rnd), rnd.Uint32()
		f := faults[rnd.IntN(len(faults))]
		if time.Now().Add(quiet + lasts).After(s.until) {
			return
		}
		pass(s.t, quiet)
		s.t.Logf("%s: %s for %s", time.Until(s.until).Round(time.Second), f.name, lasts)
		f.strike(s.system, which, lasts)
		s.mu.Lock()
		s.struck[f.name]++
		s.mu.Unlock()
	}
}

func (s *soak) draw(rnd *rand.Rand) time.Duration {
	const shortest = 200 * time.Millisecond
	return (shortest + time.Duration(rnd.Float64()*float64(s.longest))).Round(time.Millisecond)
}

func redisFaults() []soakFault {
	return []soakFault{
		{"redis_killed", func(s *system, _ uint32, lasts time.Duration) {
			s.crashRedis()
			pass(s.t, lasts)
			s.restartRedis()
		}},
		{"redis_shut_down", func(s *system, _ uint32, lasts time.Duration) {
			s.shutRedis()
			pass(s.t, lasts)
			s.restartRedis()
		}},
		{"redis_paused", func(s *system, _ uint32, lasts time.Duration) {
			if err := s.redis.Pause(); err != nil {
				s.t.Error(err)
			}
			pass(s.t, lasts)
			if err := s.redis.Resume(); err != nil {
				s.t.Error(err)
			}
		}},
		{"redis_silent", func(s *system, _ uint32, lasts time.Duration) {
			s.wire.swallow()
			pass(s.t, lasts)
			s.wire.heal()
		}},
	}
}

func processFaults() []soakFault {
	worker := func(s *system, which uint32) *process { return s.workers[int(which)%len(s.workers)] }
	return []soakFault{
		{"worker_killed", func(s *system, which uint32, lasts time.Duration) {
			w := worker(s, which)
			w.kill(s.t)
			pass(s.t, lasts)
			s.restart(w)
		}},
		{"worker_stopped", func(s *system, which uint32, lasts time.Duration) {
			w := worker(s, which)
			w.stop(s.t, syscall.SIGTERM)
			pass(s.t, lasts)
			s.restart(w)
		}},
		{"worker_frozen", func(s *system, which uint32, lasts time.Duration) {
			w := worker(s, which)
			w.signal(s.t, syscall.SIGSTOP)
			pass(s.t, lasts)
			w.signal(s.t, syscall.SIGCONT)
		}},
		{"api_killed", func(s *system, which uint32, lasts time.Duration) {
			a := s.apis[int(which)%len(s.apis)]
			a.kill(s.t)
			pass(s.t, lasts)
			s.restart(a)
		}},
	}
}

func upstreamFaults() []soakFault {
	with := func(list string) func(*system, uint32, time.Duration) {
		return func(s *system, _ uint32, lasts time.Duration) {
			s.upstream.SetFaults(upstreamtest.MustParseFaults(list))
			pass(s.t, lasts)
			s.upstream.SetFaults(soakUpstream())
		}
	}
	return []soakFault{
		{"upstream_down", func(s *system, _ uint32, lasts time.Duration) {
			s.upstream.Down()
			pass(s.t, lasts)
			s.upstream.Up()
		}},
		{"upstream_slow", with("latency=2s,jitter=2s")},
		{"upstream_hangs", with("hang=0.5,latency=100ms")},
		{"upstream_errors", with("503=0.3,reset=0.2,garbage=0.1,latency=100ms,jitter=900ms")},
	}
}
