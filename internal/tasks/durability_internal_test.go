package tasks

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// waitAOFServer names a server that knows WAITAOF: Redis from 7.2 on, or Valkey. The build must have one;
// on a machine of one's own the tests that need it say so.
func waitAOFServer(t testing.TB) func(*redisserver.Config) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a server")
	}
	for _, name := range []string{"valkey-server", "redis-server"} {
		if _, err := exec.LookPath(name); err != nil {
			continue
		}
		binary := func(c *redisserver.Config) { c.Binary = name }
		server := redistest.Start(t, binary)
		known, err := open1(t, server.URL()).Do(t.Context(), "command", "info", "waitaof").Slice()
		require.NoError(t, err)
		if known[0] != nil {
			return binary
		}
	}
	const missing = "no server here knows WAITAOF: install valkey-server, or Redis 7.2 or later (scripts/install-redis.sh)"
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return nil
}

func always(c *redisserver.Config) { c.AppendFsync = "always" }

// strictQueue is a queue on a server that must have every job on disk, and on those of some replicas.
func strictQueue(t testing.TB, server *redisserver.Server, replicas int) *bundle {
	t.Helper()
	b := &bundle{server: server, rdb: open1(t, server.URL())}
	var err error
	b.Queue, err = NewQueue(b.rdb, Config{Durability: Strict, Replicas: replicas}, NewWatcher(b.rdb, discard()), discard())
	require.NoError(t, err)
	return b
}

func keyed(key string) Submission {
	return Submission{Kind: openai.Chat, Upstream: "up", Model: "m", Request: []byte(chatBody), Key: key, Hash: "h"}
}

// unconfirmed submits and wants the job to be there all the same.
func (b *bundle) unconfirmed(t testing.TB, sub Submission, reason string) {
	t.Helper()
	_, _, err := b.Submit(t.Context(), sub)
	var e *UnconfirmedError
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Reason, reason)
	require.NotContains(t, e.Reason, "127.0.0.1")
	require.Equal(t, idForKey("", sub.Key), e.ID)
	b.in(t, e.ID, Queued)
	_, err = b.inspect.GetTaskInfo(QueueName("up", Normal), e.ID)
	require.NoError(t, err, "it may run")
}

func TestStrictAcceptsWhatIsOnDisk(t *testing.T) {
	servers := map[string]func(testing.TB) func(*redisserver.Config){
		"with WAITAOF": waitAOFServer,
		"as installed": func(testing.TB) func(*redisserver.Config) { return func(*redisserver.Config) {} },
	}
	for name, binary := range servers {
		t.Run(name, func(t *testing.T) {
			b := strictQueue(t, redistest.Start(t, binary(t), always), 0)
			ctx := t.Context()
			job := b.submit(t)
			_, created, err := b.Submit(ctx, keyed("k"))
			require.NoError(t, err)
			require.True(t, created)
			again, created, err := b.Submit(ctx, keyed("k"))
			require.NoError(t, err)
			require.False(t, created, "a repeat finds its job")

			require.NoError(t, b.rdb.ConfigSet(ctx, "appendfsync", "everysec").Err())
			b.unconfirmed(t, keyed("later"), "Redis has appendonly yes and appendfsync everysec")
			require.NoError(t, b.rdb.ConfigSet(ctx, "appendfsync", "no").Err())
			b.unconfirmed(t, keyed("k"), "appendfsync no")
			require.NoError(t, b.rdb.ConfigSet(ctx, "appendonly", "no").Err())
			b.unconfirmed(t, keyed("k2"), "appendonly no")
			require.NoError(t, b.rdb.ConfigSet(ctx, "appendonly", "yes").Err())
			require.NoError(t, b.rdb.ConfigSet(ctx, "appendfsync", "always").Err())
			eventually(t, 10*time.Second, "the append-only file is written anew", func() bool {
				_, created, err = b.Submit(ctx, keyed("later"))
				return err == nil
			})
			require.False(t, created, "a repeat confirms the job that is there")

			require.NoError(t, b.server.Kill())
			require.NoError(t, b.server.Restart(ctx))
			b.in(t, job.ID, Queued)
			b.in(t, again.ID, Queued)
		})
	}
}

// Only a connection that has written has something to ask for.
func TestARepeatWritesInStrictModeOnly(t *testing.T) {
	for _, strict := range []bool{false, true} {
		b := strictQueue(t, redistest.Start(t, always), 0)
		b.durable.strict = strict
		size := func() string {
			text, err := b.rdb.Info(t.Context(), "persistence").Result()
			require.NoError(t, err)
			_, after, _ := strings.Cut(text, "aof_current_size:")
			return strings.Fields(after)[0]
		}
		_, _, err := b.Submit(t.Context(), keyed("k"))
		require.NoError(t, err)
		before := size()
		_, _, err = b.Submit(t.Context(), keyed("k"))
		require.NoError(t, err)
		require.Equal(t, strict, before != size())
	}
}

func TestStrictWaitsForReplicas(t *testing.T) {
	binary := waitAOFServer(t)
	b := strictQueue(t, redistest.Start(t, binary, always, func(c *redisserver.Config) {
		c.Args = []string{"--repl-diskless-sync-delay", "0"} // else a replica is kept waiting for others
	}), 1)
	b.unconfirmed(t, keyed("alone"), "0 of 1 replicas have it on disk")
	host, port, err := net.SplitHostPort(b.server.Addr())
	require.NoError(t, err)
	replica := redistest.Start(t, binary, always, func(c *redisserver.Config) { c.Args = []string{"--replicaof", host, port} })
	eventually(t, 10*time.Second, "the replica has it", func() bool {
		_, _, err := b.Submit(t.Context(), keyed("alone"))
		return err == nil
	})
	require.NoError(t, replica.Pause())
	b.unconfirmed(t, keyed("hung"), "0 of 1 replicas have it on disk")
	require.NoError(t, replica.Resume())
}

func TestConfirm(t *testing.T) {
	settings := func(appendonly, fsync string) map[string]string {
		return map[string]string{"appendonly": appendonly, "appendfsync": fsync, "appenddirname": "appendonlydir"}
	}
	fine := settings("yes", "always")
	unknown := redisError("ERR unknown command 'waitaof', with args beginning with: '1' ")
	tests := []struct {
		name     string
		settings map[string]string // nil: cannot be read
		replicas int
		acks     []any // nil: the error
		err      error
		want     string // of the reason; "" is confirmed
	}{
		{"on disk", fine, 0, []any{int64(1), int64(0)}, nil, ""},
		{"and on a replica's", fine, 1, []any{int64(1), int64(1)}, nil, ""},
		{"on more than asked for", fine, 1, []any{int64(1), int64(2)}, nil, ""},
		{"an old server that syncs before it answers", fine, 0, nil, unknown, ""},
		{"an old server cannot speak for its replicas", fine, 1, nil, unknown, "could not say"},
		{"not on a replica's", fine, 2, []any{int64(1), int64(1)}, nil, "1 of 2 replicas"},
		{"not on disk", fine, 0, []any{int64(0), int64(0)}, nil, "has not written"},
		{"the acknowledgement of everysec comes before the fsync", settings("yes", "everysec"), 0, []any{int64(1), int64(0)}, nil, "appendfsync everysec"},
		{"no file", settings("no", "always"), 0, nil, redisError("ERR WAITAOF cannot be used"), "appendonly no"},
		{"nobody may ask", nil, 0, []any{int64(1), int64(0)}, nil, "settings"},
		{"an empty answer", map[string]string{}, 0, []any{int64(1), int64(0)}, nil, "appendonly  and"},
		{"a demoted master", fine, 0, nil, redisError("ERR WAITAOF cannot be used with replica instances"), "could not say"},
		{"a cut connection", fine, 0, nil, errors.New("EOF"), "could not say"},
		{"another shape", fine, 0, []any{int64(1)}, nil, "could not say"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			copies, config := redis.NewCmd(t.Context(), "waitaof"), redis.NewMapStringStringCmd(t.Context(), "config")
			if tt.acks != nil {
				copies.SetVal(tt.acks)
			}
			copies.SetErr(tt.err)
			config.SetVal(tt.settings)
			if tt.settings == nil {
				config.SetErr(redisError("NOPERM"))
			}
			e := durable{strict: true, replicas: tt.replicas}.confirm(copies, config)
			if tt.want == "" {
				require.Nil(t, e)
				return
			}
			require.NotNil(t, e)
			require.Contains(t, e.Reason, tt.want)
		})
	}
}

type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// A reply that got lost makes go-redis send the script again, which finds what it has written itself.
func TestACreateWhoseReplyWasLostIsNoRepeat(t *testing.T) {
	b := newBundle(t)
	job := b.newJob(keyed("k"))
	for range 2 {
		created, _, err := b.create(t.Context(), job, "h")
		require.NoError(t, err)
		require.True(t, created)
	}
	b.in(t, job.ID, Queued)
	_, err := b.seize(t.Context(), job.ID)
	require.NoError(t, err)
	created, taken, err := b.create(t.Context(), job, "h")
	require.NoError(t, err)
	require.False(t, created, "what has been run was created before")
	require.Equal(t, "h", taken)
}

// Redis refuses a create for want of memory before it has written anything.
func TestAFullRedisHasNoHalfOfAJob(t *testing.T) {
	servers := map[string]func(*redisserver.Config){"redis-server": func(*redisserver.Config) {}}
	if _, err := exec.LookPath("valkey-server"); err == nil {
		servers["valkey-server"] = func(c *redisserver.Config) { c.Binary = "valkey-server" }
	}
	for name, binary := range servers {
		t.Run(name, func(t *testing.T) {
			for _, strict := range []bool{false, true} {
				b := strictQueue(t, redistest.Start(t, always, binary), 0)
				b.durable.strict = strict
				ctx := t.Context()
				require.NoError(t, b.rdb.Set(ctx, "ballast", strings.Repeat("x", 1<<20), 0).Err())
				require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "1mb").Err())
				_, _, err := b.Submit(ctx, keyed("k"))
				require.Error(t, err)
				require.True(t, redis.IsOOMError(errors.Unwrap(err)), err)
				keys, err := b.rdb.Keys(ctx, "*").Result()
				require.NoError(t, err)
				require.Equal(t, []string{"ballast"}, keys)
				require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "0").Err())
				_, created, err := b.Submit(ctx, keyed("k"))
				require.NoError(t, err)
				require.True(t, created)
			}
		})
	}
}

// clusterNode starts a master of a cluster of its own, as yet without slots.
func clusterNode(t *testing.T, binary func(*redisserver.Config)) *redisserver.Server {
	t.Helper()
	for {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addr := ln.Addr().String()
		require.NoError(t, ln.Close())
		if _, port, _ := net.SplitHostPort(addr); len(port) == 5 && port < "55000" { // its bus listens 10,000 above
			return redistest.Start(t, binary, always, func(c *redisserver.Config) {
				c.Addr, c.Args = addr, []string{"--cluster-enabled", "yes"}
			})
		}
	}
}

// A key may move to another master between the look-up and the create.
func TestStrictFollowsAKeyThroughTheCluster(t *testing.T) {
	binary := waitAOFServer(t)
	ctx := t.Context()
	var nodes []*redis.Client
	var ids []string
	var servers []*redisserver.Server
	for i := range 2 {
		servers = append(servers, clusterNode(t, binary))
		node := redis.NewClient(&redis.Options{Addr: servers[i].Addr()})
		t.Cleanup(func() { _ = node.Close() })
		require.NoError(t, node.ClusterAddSlotsRange(ctx, i*8192, i*8192+8191).Err())
		nodes = append(nodes, node)
		ids = append(ids, node.Do(ctx, "cluster", "myid").Val().(string))
	}
	require.NoError(t, nodes[0].Do(ctx, "cluster", "set-config-epoch", 1).Err())
	host, port, err := net.SplitHostPort(servers[1].Addr())
	require.NoError(t, err)
	require.NoError(t, nodes[0].ClusterMeet(ctx, host, port).Err())
	eventually(t, 20*time.Second, "the nodes know each other", func() bool {
		for _, n := range nodes {
			if info, err := n.ClusterInfo(ctx).Result(); err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") {
				return false
			}
		}
		return true
	})

	rdb := open1(t, "redis-cluster://"+servers[0].Addr())
	q, err := NewQueue(rdb, Config{Durability: Strict}, NewWatcher(rdb, discard()), discard())
	require.NoError(t, err)
	for n := range 16 { // all parts, on both masters
		_, created, err := q.Submit(ctx, keyed(strconv.Itoa(n)))
		require.NoError(t, err)
		require.True(t, created)
	}
	job := q.newJob(keyed("moves"))
	slot := int(nodes[0].ClusterKeySlot(ctx, jobKey(job.ID)).Val())
	for _, n := range nodes { // the part's other jobs are no matter here
		require.NoError(t, n.FlushAll(ctx).Err())
	}
	from := slot / 8192
	for _, n := range []*redis.Client{nodes[1-from], nodes[from]} {
		require.NoError(t, n.Do(ctx, "cluster", "setslot", slot, "node", ids[1-from]).Err())
	}
	limited, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	created, _, err := q.create(limited, job, "h")
	require.NoError(t, err)
	require.True(t, created)
	require.Equal(t, int64(1), nodes[1-from].Exists(ctx, jobKey(job.ID)).Val())
}
