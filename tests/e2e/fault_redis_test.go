package e2e_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// faultConfig keeps a queue in front of the workers, which have $PLACES each.
const faultConfig = `
worker: {drain: 10s, concurrency: $PLACES}
jobs:
  backoff: {base: 200ms, max: 2s}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`

// faultPlaces lets two workers take about half a minute for the jobs of a fault.
func faultPlaces() int { return long(32, 160) }

// faultOptions are of a system with calls of 1 to 2 s and more jobs than it has places.
func faultOptions() options {
	return options{
		apis: 2, workers: 2, config: fill(faultConfig, "$PLACES", faultPlaces()),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=1s,jitter=1s")},
	}
}

// crashRedis ends redis-server as a crash does.
func (s *system) crashRedis() {
	s.t.Helper()
	if err := s.redis.Kill(); err != nil {
		s.t.Fatal(err)
	}
}

// shutRedis ends redis-server by SIGTERM, upon which it does what SHUTDOWN does.
func (s *system) shutRedis() {
	s.t.Helper()
	if err := s.redis.Stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// restartRedis starts redis-server again with the file it had.
func (s *system) restartRedis() {
	s.t.Helper()
	if err := s.redis.Restart(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func TestFaultRedisKilled(t *testing.T) {
	for _, fsync := range []string{"always", "everysec"} {
		t.Run(fsync, func(t *testing.T) {
			t.Parallel() // it mostly waits
			o := faultOptions()
			o.redis = func(c *redisserver.Config) { c.AppendFsync = fsync }
			fault{name: "redis_killed_fsync_" + fsync, options: o, strike: func(s *system) {
				s.crashRedis()
				pass(s.t, 2*time.Second)
				s.restartRedis()
			}}.run(t)
		})
	}
}

// Redis is the only state. While it is away nothing is accepted, and what was accepted before is still there
// afterwards.
func TestFaultRedisRestarted(t *testing.T) {
	for _, away := range long([]int{2}, []int{2, 20, 60}) {
		t.Run(fmt.Sprintf("after %ds", away), func(t *testing.T) {
			t.Parallel() // it mostly waits
			fault{name: fmt.Sprintf("redis_restarted_after_%ds", away), options: faultOptions(), strike: func(s *system) {
				s.shutRedis()
				pass(s.t, time.Duration(away)*time.Second)
				s.restartRedis()
			}}.run(t)
		})
	}
}

// The network swallows what is sent to Redis and what it answers. Whether a command was carried out nobody can tell.
func TestFaultRedisSilent(t *testing.T) {
	for _, silent := range long([]int{10}, []int{10, 60}) {
		t.Run(fmt.Sprintf("for %ds", silent), func(t *testing.T) {
			t.Parallel() // it mostly waits
			o := faultOptions()
			o.wire = true
			fault{name: fmt.Sprintf("redis_silent_for_%ds", silent), options: o, strike: func(s *system) {
				s.wire.swallow()
				pass(s.t, time.Duration(silent)*time.Second)
				s.wire.heal()
			}}.run(t)
		})
	}
}

// A worker is told to end while it holds answers that Redis cannot take. It must not wait for ever, and the answers
// must not be bought again.
func TestFaultWorkerStoppedWithoutRedis(t *testing.T) {
	t.Parallel() // it mostly waits
	held := 0
	fault{
		name: "worker_stopped_without_redis", options: faultOptions(),
		strike: func(s *system) {
			s.shutRedis()
			held = s.upstream.InFlight()
			until(s.t, 10*time.Second, "the calls in flight are answered", func() bool { return s.upstream.InFlight() == 0 })
			took := s.workers[0].stop(s.t, syscall.SIGTERM)
			figure(s.t, "worker_stopped_without_redis_took", took)
			s.restartRedis()
			s.restart(s.workers[0])
		},
		also: func(t *testing.T, r *row) {
			if held < 2*faultPlaces() {
				t.Errorf("only %d calls were in flight when Redis went away, want all %d", held, 2*faultPlaces())
			}
			if answers, _ := r.repeated(); answers > 0 {
				t.Errorf("%d answers were bought again, want none: they were in the worker's hands", answers)
			}
		},
	}.run(t)
}
