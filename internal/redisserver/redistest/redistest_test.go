package redistest_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// failoverLimit is well above down-after and an election.
const failoverLimit = 20 * time.Second

func TestSentinelReplacesADeadMaster(t *testing.T) {
	needProcesses(t)
	s := redistest.StartSentinel(t)
	first := s.Master(t)
	if first != s.Nodes()[0] {
		t.Fatalf("the master is %s, want %s", first.Addr(), s.Nodes()[0].Addr())
	}
	kill(t, first)
	next := successor(t, first, func() *redisserver.Server { return s.Master(t) })
	set(t, next, "k")
}

func TestClusterReplacesADeadMaster(t *testing.T) {
	needProcesses(t)
	c := redistest.StartCluster(t)
	const key = "k"
	first := c.Master(t, key)
	set(t, first, key)
	kill(t, first)
	next := successor(t, first, func() *redisserver.Server { return c.Master(t, key) })
	set(t, next, key)
}

func needProcesses(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: starts processes")
	}
}

func kill(t *testing.T, s *redisserver.Server) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
}

// successor waits until another than the first is the master.
func successor(t *testing.T, first *redisserver.Server, master func() *redisserver.Server) *redisserver.Server {
	t.Helper()
	began := time.Now()
	for next := master(); ; next = master() {
		if next != first {
			t.Logf("replaced after %s", time.Since(began).Round(time.Millisecond))
			return next
		}
		if time.Since(began) > failoverLimit {
			t.Fatalf("not replaced within %s", failoverLimit)
		}
		time.Sleep(20 * time.Millisecond) // real servers; there is nothing to wait on
	}
}

// set writes to a node, which must be a master.
func set(t *testing.T, s *redisserver.Server, key string) {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), MaxRetries: 10})
	defer rdb.Close()
	if err := rdb.Set(t.Context(), key, "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
}
