// Package redistest gives a test a redis-server of its own, or a set of them with Sentinel or as a Cluster. They
// end with the test.
package redistest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

// Start runs a redis-server in a temporary directory, with an append-only file
// so that [redisserver.Server.Restart] and Kill keep the data, and stops it when
// the test ends. Each option may change the configuration. A machine without
// redis-server fails the test: it never skips.
func Start(tb testing.TB, opts ...func(*redisserver.Config)) *redisserver.Server {
	tb.Helper()
	// No fsync: only a power failure could lose data, and tests have none.
	cfg := redisserver.Config{Dir: tb.TempDir(), AppendOnly: true, AppendFsync: "no"}
	for _, opt := range opts {
		opt(&cfg)
	}
	s, err := redisserver.Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// The test's own context has ended by now.
		if err := s.Stop(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// formLimit is how long the parts of a set may take to find each other.
const formLimit = 30 * time.Second

// await looks again and again until cond holds.
func await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(formLimit); !cond(); {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %s: %s", formLimit, what)
		}
		<-tick.C
	}
}

// awaitData waits until a replica has its master's data.
func awaitData(tb testing.TB, replica *redisserver.Server) {
	tb.Helper()
	rdb := nodeClient(tb, replica)
	await(tb, "a replica has the data", func() bool {
		return strings.Contains(rdb.Info(tb.Context(), "replication").Val(), "master_link_status:up")
	})
}

func nodeClient(tb testing.TB, s *redisserver.Server) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	tb.Cleanup(func() { _ = rdb.Close() }) // nothing is left to lose
	return rdb
}

// addrs is a list of servers as it stands in a URL.
func addrs(servers []*redisserver.Server) string {
	list := make([]string, len(servers))
	for i, s := range servers {
		list[i] = s.Addr()
	}
	return strings.Join(list, ",")
}

// nodeAt is the server with an address.
func nodeAt(tb testing.TB, servers []*redisserver.Server, addr string) *redisserver.Server {
	tb.Helper()
	i := slices.IndexFunc(servers, func(s *redisserver.Server) bool { return s.Addr() == addr })
	if i < 0 {
		tb.Fatalf("no server of the test has the address %s", addr)
	}
	return servers[i]
}
