package redistest

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

const (
	masters     = 3
	slots       = 16384
	nodeTimeout = "2000" // ms; as downAfter
)

// Cluster is a Redis Cluster of three masters with one replica each.
type Cluster struct {
	nodes []*redisserver.Server // the masters, then their replicas in the same order
}

// StartCluster runs a Redis Cluster and returns once every node sees it whole and every replica has its master's
// data. A master that does not answer for two seconds is replaced by its replica. The options configure each
// node, as those of [Start] do.
func StartCluster(tb testing.TB, opts ...func(*redisserver.Config)) *Cluster {
	tb.Helper()
	c := new(Cluster)
	for range 2 * masters {
		c.nodes = append(c.nodes, Start(tb, append(opts, clusterNode)...))
	}
	c.meet(tb)
	for i, master := range c.nodes[:masters] {
		rdb := nodeClient(tb, master)
		if err := rdb.ClusterAddSlotsRange(tb.Context(), i*slots/masters, (i+1)*slots/masters-1).Err(); err != nil {
			tb.Fatal(err)
		}
		c.follow(tb, c.nodes[masters+i], rdb.ClusterMyID(tb.Context()).Val())
	}
	for _, node := range c.nodes {
		rdb := nodeClient(tb, node)
		await(tb, "the cluster is whole", func() bool {
			state := rdb.ClusterInfo(tb.Context()).Val()
			return strings.Contains(state, "cluster_state:ok") && strings.Contains(state, "cluster_size:"+strconv.Itoa(masters))
		})
	}
	for _, replica := range c.nodes[masters:] {
		awaitData(tb, replica)
	}
	return c
}

// URL is the address of the cluster as internal/redisclient reads it.
func (c *Cluster) URL() string { return "redis://" + addrs(c.nodes) }

// Nodes are the masters and then the replicas, as they were at the start.
func (c *Cluster) Nodes() []*redisserver.Server { return c.nodes }

// Master is the node that serves a key now.
func (c *Cluster) Master(tb testing.TB, key string) *redisserver.Server {
	tb.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: strings.Split(addrs(c.nodes), ","), DialerRetries: 1})
	defer rdb.Close()
	master, err := rdb.MasterForKey(tb.Context(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return nodeAt(tb, c.nodes, master.Options().Addr)
}

// clusterNode makes a server a node of a cluster.
func clusterNode(c *redisserver.Config) {
	c.Args = append(c.Args, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
		"--cluster-node-timeout", nodeTimeout, "--repl-diskless-sync-delay", "0")
}

// meet introduces every node to the first and waits until all know all. Each gets an epoch of its own before,
// while it knows nobody: nodes with equal ones could both win a failover.
func (c *Cluster) meet(tb testing.TB) {
	tb.Helper()
	host, port, _ := net.SplitHostPort(c.nodes[0].Addr()) // of a server that runs
	for i, node := range c.nodes {
		rdb := nodeClient(tb, node)
		err := rdb.Do(tb.Context(), "cluster", "set-config-epoch", i+1).Err()
		if i > 0 && err == nil {
			err = rdb.ClusterMeet(tb.Context(), host, port).Err()
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	for _, node := range c.nodes {
		rdb := nodeClient(tb, node)
		await(tb, "a node knows the others", func() bool {
			return strings.Contains(rdb.ClusterInfo(tb.Context()).Val(), "cluster_known_nodes:"+strconv.Itoa(len(c.nodes)))
		})
	}
}

// follow makes a node the replica of a master.
func (c *Cluster) follow(tb testing.TB, node *redisserver.Server, masterID string) {
	tb.Helper()
	if err := nodeClient(tb, node).ClusterReplicate(tb.Context(), masterID).Err(); err != nil {
		tb.Fatal(err)
	}
}
