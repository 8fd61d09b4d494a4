package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

const (
	masterName = "ferry"
	quorum     = 2
	sentinels  = 3
	replicas   = 2 // of the one master

	// downAfter is a tenth of the time that Sentinel suggests: an outage in a test is long enough to be seen,
	// and the machine not so busy that a live master looks dead.
	downAfter = 2 * time.Second
	// A failover that has not come about by then, because the votes were split, is tried anew after twice this.
	failoverTimeout = 3 * time.Second
)

// Sentinel is a master with two replicas and three sentinels that watch them.
type Sentinel struct {
	nodes     []*redisserver.Server // the first is the first master
	sentinels []*redisserver.Server
}

// StartSentinel runs a master with two replicas and three sentinels, and returns once each sentinel knows of all
// others and the replicas have the master's data. A master that does not answer for two seconds is replaced. The options configure the master and the
// replicas, as those of [Start] do.
func StartSentinel(tb testing.TB, opts ...func(*redisserver.Config)) *Sentinel {
	tb.Helper()
	s := &Sentinel{nodes: []*redisserver.Server{Start(tb, opts...)}}
	for range replicas {
		s.nodes = append(s.nodes, Start(tb, append(opts, replicaOf(s.nodes[0]))...))
	}
	for range sentinels {
		s.sentinels = append(s.sentinels, startSentinel(tb, s.nodes[0]))
	}
	for _, replica := range s.nodes[1:] {
		awaitData(tb, replica)
	}
	for _, sentinel := range s.sentinels {
		awaitSet(tb, sentinel)
	}
	return s
}

// URL is the address of the set as internal/redisclient reads it.
func (s *Sentinel) URL() string {
	return "redis-sentinel://" + addrs(s.sentinels) + "/0?master=" + masterName
}

// Nodes are the master and the replicas, whoever is which now.
func (s *Sentinel) Nodes() []*redisserver.Server { return s.nodes }

// Master is the node that the sentinels send clients to.
func (s *Sentinel) Master(tb testing.TB) *redisserver.Server {
	tb.Helper()
	rdb := sentinelClient(tb, s.sentinels[0])
	addr, err := rdb.GetMasterAddrByName(tb.Context(), masterName).Result()
	if err != nil {
		tb.Fatal(err)
	}
	return nodeAt(tb, s.nodes, net.JoinHostPort(addr[0], addr[1]))
}

// replicaOf makes a node follow another. It asks for no wait in which further replicas may join a transfer.
func replicaOf(master *redisserver.Server) func(*redisserver.Config) {
	return func(c *redisserver.Config) {
		host, port, _ := net.SplitHostPort(master.Addr()) // of a server that runs
		c.Args = append(c.Args, "--replicaof", host, port, "--repl-diskless-sync-delay", "0")
	}
}

// startSentinel runs one sentinel, which keeps what it learns in its configuration file.
func startSentinel(tb testing.TB, master *redisserver.Server) *redisserver.Server {
	tb.Helper()
	host, port, _ := net.SplitHostPort(master.Addr()) // of a server that runs
	text := strings.Join([]string{
		fmt.Sprintf("sentinel monitor %s %s %s %d", masterName, host, port, quorum),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", masterName, downAfter.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s %d", masterName, failoverTimeout.Milliseconds()),
		"",
	}, "\n")
	file := filepath.Join(tb.TempDir(), "sentinel.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return Start(tb, func(c *redisserver.Config) { c.Args = []string{file, "--sentinel"} })
}

// awaitSet waits until a sentinel knows of all others: before that there would be no majority for a failover, or
// no replica to promote.
func awaitSet(tb testing.TB, sentinel *redisserver.Server) {
	tb.Helper()
	rdb := sentinelClient(tb, sentinel)
	await(tb, "a sentinel knows the set", func() bool {
		m, err := rdb.Master(tb.Context(), masterName).Result()
		return err == nil && m["num-slaves"] == strconv.Itoa(replicas) && m["num-other-sentinels"] == strconv.Itoa(sentinels-1)
	})
}

func sentinelClient(tb testing.TB, s *redisserver.Server) *redis.SentinelClient {
	rdb := redis.NewSentinelClient(&redis.Options{Addr: s.Addr()})
	tb.Cleanup(func() { _ = rdb.Close() }) // nothing is left to lose
	return rdb
}
