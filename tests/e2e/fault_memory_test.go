package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/client"
)

const (
	// ballast stands for answers that nobody has fetched. It is more than maxmemory, and the jobs of a fault are less.
	ballast   = 64 << 20
	maxMemory = "32mb"
)

// A Redis that is full takes no new jobs, and those that run end all the same. It goes on by itself once there is room.
func TestFaultRedisFull(t *testing.T) {
	t.Parallel() // it mostly waits
	tests := []struct {
		name string
		heal func(t *testing.T, rdb *redis.Client) error
	}{
		{name: "deleted", heal: func(t *testing.T, rdb *redis.Client) error {
			return rdb.Del(t.Context(), "ballast").Err()
		}},
		{name: "raised", heal: func(t *testing.T, rdb *redis.Client) error {
			return rdb.ConfigSet(t.Context(), "maxmemory", "0").Err()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			f := pairFault("redis_full_"+tt.name, func(s *system) {
				rdb := store(s.t, s.redis.Addr())
				s.addBallast(rdb)
				running := s.running()
				if err := rdb.ConfigSet(s.t.Context(), "maxmemory", maxMemory).Err(); err != nil {
					s.t.Fatal(err)
				}
				began := time.Now()
				if _, open := s.waitLong(running, 15*time.Second); open > 0 {
					s.t.Errorf("%d of the jobs that ran when Redis got full have not ended", open)
				}
				figure(s.t, "redis_full_runs_ended_after", time.Since(began))
				pass(s.t, 2*time.Second)
				if err := tt.heal(s.t, rdb); err != nil {
					s.t.Fatal(err)
				}
			})
			f.jobs = fewer()
			f.run(t)
		})
	}
}

// addBallast puts it into Redis, in pieces, so that it goes on answering.
func (s *system) addBallast(rdb *redis.Client) {
	s.t.Helper()
	piece := strings.Repeat("x", 1<<20)
	for range ballast / len(piece) {
		if err := rdb.Append(s.t.Context(), "ballast", piece).Err(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// running is a page of the jobs that are.
func (s *system) running() []*client.Job {
	s.t.Helper()
	page, err := s.client().List(s.t.Context(), client.ListOptions{State: client.StateRunning})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(page.Data) == 0 {
		s.t.Error("no call is in flight")
	}
	return page.Data
}
