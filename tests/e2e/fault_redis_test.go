package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

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

// pauseRedis keeps redis-server from running, with its connections open. What is sent to it waits.
func (s *system) pauseRedis() {
	s.t.Helper()
	if err := s.redis.Pause(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) resumeRedis() {
	s.t.Helper()
	if err := s.redis.Resume(); err != nil {
		s.t.Fatal(err)
	}
}

func TestFaultRedisKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, fsync := range []string{"always", "everysec"} {
		t.Run(fsync, func(t *testing.T) {
			t.Parallel() // it mostly waits
			f := pairFault("redis_killed_fsync_"+fsync, func(s *system) {
				s.crashRedis()
				pass(s.t, 2*time.Second)
				s.restartRedis()
			})
			f.options.redis = func(c *redisserver.Config) { c.AppendFsync = fsync }
			f.run(t)
		})
	}
}

// Redis is the only state. While it is away nothing is accepted, and what was accepted before is still there
// afterwards.
func TestFaultRedisRestarted(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, seconds := range long([]int{2}, []int{2, 20, 60}) {
		t.Run(fmt.Sprintf("after %ds", seconds), func(t *testing.T) {
			t.Parallel() // it mostly waits
			pairFault(fmt.Sprintf("redis_restarted_%ds", seconds), func(s *system) {
				s.shutRedis()
				pass(s.t, time.Duration(seconds)*time.Second)
				s.restartRedis()
			}).run(t)
		})
	}
}

// Redis takes connections and does not answer: the network swallows what is sent to it and what it says, or the latter
// alone. Whether a command was carried out nobody can tell.
func TestFaultRedisSilent(t *testing.T) {
	t.Parallel() // it mostly waits
	both, replies := []string{"upstream", "downstream"}, []string{"downstream"}
	tests := []struct {
		name    string
		swallow []string
		seconds int
	}{
		{"redis_silent_10s", both, 10},
		{"redis_replies_lost_10s", replies, 10},
		{"redis_silent_60s", both, 60},
	}
	for _, tt := range tests[:long(1, len(tests))] {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			f := pairFault(tt.name, func(s *system) {
				s.wire.swallow(tt.swallow...)
				pass(s.t, time.Duration(tt.seconds)*time.Second)
				s.wire.heal()
			})
			f.options.wire = true
			f.run(t)
		})
	}
}

// A paused Redis carries commands out when whoever sent them has given up.
func TestFaultRedisPaused(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, seconds := range long([]int{10}, []int{10, 60}) {
		t.Run(fmt.Sprintf("for %ds", seconds), func(t *testing.T) {
			t.Parallel() // it mostly waits
			pairFault(fmt.Sprintf("redis_paused_%ds", seconds), func(s *system) {
				s.pauseRedis()
				pass(s.t, time.Duration(seconds)*time.Second)
				s.resumeRedis()
			}).run(t)
		})
	}
}

// A worker ends while it holds answers that Redis cannot take: it is told to, and must not wait for ever, or it crashes
// once they are on disk. They are delivered by itself when it is back, or by another of its machine, and must not be
// bought again.
func TestFaultWorkerEndsWithoutRedis(t *testing.T) {
	t.Parallel() // it mostly waits
	tests := []struct {
		name string
		ends func(s *system, w *process) // and Redis comes back
	}{
		{"worker_stopped_without_redis", func(s *system, w *process) {
			figure(s.t, "worker_stopped_without_redis_took", w.stop(s.t, syscall.SIGTERM))
			s.restartRedis()
			s.restart(w)
		}},
		{"worker_killed_1_of_2_without_redis", func(s *system, w *process) {
			s.kill(w)
			s.restartRedis()
		}},
		{"worker_killed_2_of_2_without_redis", func(s *system, w *process) {
			other := s.workers[1]
			w.kill(s.t)
			other.kill(s.t)
			s.restart(w)
			s.restartRedis()
			s.restart(other)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			f := pairFault(tt.name, func(s *system) {
				s.crashRedis()
				gone := time.Now()
				until(s.t, 20*time.Second, "every answer is in Redis or on disk", s.keepsAll)
				figure(s.t, tt.name+"_all_on_disk_after", time.Since(gone))
				tt.ends(s, s.workers[0])
			})
			f.jobs, f.also = fewer(), (*row).wantNoCallAgain
			f.run(t)
		})
	}
}

// keepsAll reports whether the upstream has answered all its calls and no answer is in the memory of a worker alone.
func (s *system) keepsAll() bool {
	answers, inRedis := 0, 0
	for _, tally := range s.upstream.Tallies() {
		answers += tally.Answers
	}
	for _, w := range s.workers {
		inRedis += strings.Count(w.output(), `"msg":"job ended"`)
	}
	return s.upstream.InFlight() == 0 && s.onDisk() == answers-inRedis
}

// onDisk is how many answers the workers keep there.
func (s *system) onDisk() int {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.dir, ".ferry", "spool", "*", "*.entry"))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(found)
}
