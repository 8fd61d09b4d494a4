package redisclient_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

func TestMain(m *testing.M) {
	redisclient.LogTo(discard())
	m.Run()
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, url          string
		addrs              []string
		db                 int
		user, password     string
		tls                bool
		master             string
		sentinelUser, sent string
		pool               int
		cluster            bool
	}{
		{name: "one server", url: "redis://127.0.0.1:6379/0", addrs: []string{"127.0.0.1:6379"}},
		{name: "the usual port", url: " redis://cache ", addrs: []string{"cache:6379"}},
		{name: "a database", url: "redis://h:1/7", addrs: []string{"h:1"}, db: 7},
		{name: "IPv6", url: "redis://[::1]:6380/1", addrs: []string{"[::1]:6380"}, db: 1},
		{name: "IPv6, the usual port", url: "redis://[::1]", addrs: []string{"[::1]:6379"}},
		{name: "a password alone", url: "redis://:pw@h:1", addrs: []string{"h:1"}, password: "pw"},
		{name: "user and encoded password", url: "redis://ferry:p%40s%2Fs%3F@h:1/0", addrs: []string{"h:1"}, user: "ferry", password: "p@s/s?"},
		{name: "TLS", url: "rediss://h:1", addrs: []string{"h:1"}, tls: true},
		{name: "a pool", url: "redis://h:1?pool_size=7", addrs: []string{"h:1"}, pool: 7},
		{name: "a cluster", url: "redis://a:1,b:2,c:3", addrs: []string{"a:1", "b:2", "c:3"}, cluster: true},
		{name: "a cluster with blanks and usual ports", url: "redis://u:p@a, b ,[::1]/0", addrs: []string{"a:6379", "b:6379", "[::1]:6379"}, user: "u", password: "p", cluster: true},
		{name: "a cluster over TLS", url: "rediss://a:1,b:2", addrs: []string{"a:1", "b:2"}, tls: true, cluster: true},
		{name: "a cluster by one address", url: "redis-cluster://u:p@a", addrs: []string{"a:6379"}, user: "u", password: "p", cluster: true},
		{name: "a cluster by one address over TLS", url: "rediss-cluster://a:1", addrs: []string{"a:1"}, tls: true, cluster: true},
		{name: "sentinel", url: "redis-sentinel://a:1,b:2/3?master=mymaster", addrs: []string{"a:1", "b:2"}, db: 3, master: "mymaster"},
		{name: "sentinel's usual port", url: "redis-sentinel://a,b?master=m", addrs: []string{"a:26379", "b:26379"}, master: "m"},
		{
			name: "sentinel with both passwords", url: "redis-sentinel://u:p@a:1?master=m&sentinel_username=su&sentinel_password=s%26p",
			addrs: []string{"a:1"}, master: "m", user: "u", password: "p", sentinelUser: "su", sent: "s&p",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := redisclient.Parse(tt.url)
			require.NoError(t, err)
			require.Equal(t, tt.addrs, o.Addrs)
			require.Equal(t, tt.db, o.DB)
			require.Equal(t, []string{tt.user, tt.password}, []string{o.Username, o.Password})
			require.Equal(t, tt.tls, o.TLSConfig != nil)
			require.Equal(t, []string{tt.master, tt.sentinelUser, tt.sent}, []string{o.MasterName, o.SentinelUsername, o.SentinelPassword})
			require.Equal(t, tt.pool, o.PoolSize)
			require.Equal(t, tt.cluster, o.IsClusterMode)
			require.True(t, o.ContextTimeoutEnabled, "a request's deadline holds for its commands")
			require.Equal(t, 4*time.Second, o.ReadTimeout)
		})
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	tests := []struct{ url, want string }{
		{"", "want redis://host:port/db"},
		{"127.0.0.1:6379", "want redis://host:port/db"},
		{"http://h:1", `unknown scheme "http"`},
		{"redis://h:1/notanumber", "database number"},
		{"redis://h:1/0/1", "database number"},
		{"redis://h:port", "not a URL"},
		{"redis://a:1,,b:2", "a host in the list is empty"},
		{"redis-cluster://a:1/3", "Redis Cluster has database 0 only, not 3"},
		{"redis://a:1,b:2/3", "Redis Cluster has database 0 only, not 3"},
		{"redis://h:1?pool_size=none", `pool_size: "none" is not a positive number`},
		{"redis://h:1?pool_size=0", `pool_size: "0" is not a positive number`},
		{"redis://h:1?timeout=3", `unknown parameter "timeout"`},
		{"redis://h:1?master=m", "master goes with redis-sentinel:// only"},
		{"redis-sentinel://h:1", "needs ?master=<name>"},
	}
	for _, tt := range tests {
		_, err := redisclient.Parse(tt.url)
		require.ErrorContains(t, err, tt.want, tt.url)
		require.True(t, strings.HasPrefix(err.Error(), "redis url: "), err)
	}
}

// Whatever is wrong with an address: its error goes to a terminal and into a log.
func TestNoErrorRepeatsAPassword(t *testing.T) {
	for _, password := range []string{"12/hunter2", "12?hunter2", "12#hunter2", "hun/ter2", "hunter2?", "hunter2%zz", "hun ter2", "hunter2]", "12/34/hunter2"} {
		for _, form := range []string{"redis://u:%s@h:1/0", "redis://:%s@h:1", "rediss://u:%s@h:x/0", "redis-sentinel://u:%s@a:1,b:2?master=m", "redis://u:%s@a:1,b:2/zz"} {
			_, err := redisclient.Parse(fmt.Sprintf(form, password))
			if err != nil {
				require.NotContains(t, err.Error(), "ter2", form)
			}
			require.NotContains(t, redisclient.Display(fmt.Sprintf(form, password)), "ter2")
		}
	}
}

func TestDisplay(t *testing.T) {
	for url, want := range map[string]string{
		"redis://u:hunter2@h:1/0":  "h:1",
		"redis://:hunter2@a:1,b:2": "a:1,b:2",
		"redis-sentinel://:hunter2@a,b?master=m&sentinel_password=hunter2": "sentinel a:26379,b:26379 master m",
		"nonsense": "invalid",
	} {
		require.Equal(t, want, redisclient.Display(url))
	}
}

func TestOpenMakesTheClientOfTheDeployment(t *testing.T) {
	for url, want := range map[string]any{
		"redis://127.0.0.1:1":                   &redis.Client{},
		"redis://127.0.0.1:1,127.0.0.1:2":       &redis.ClusterClient{},
		"redis-cluster://127.0.0.1:1":           &redis.ClusterClient{},
		"redis-sentinel://127.0.0.1:1?master=m": &redis.Client{},
	} {
		rdb, err := redisclient.Open(url)
		require.NoError(t, err)
		require.IsType(t, want, rdb, url)
		require.NoError(t, rdb.Close())
	}
	_, err := redisclient.Open("nonsense")
	require.Error(t, err)
}

// open returns a client of a server of the test's own.
func open(t *testing.T, server *redisserver.Server) redis.UniversalClient {
	t.Helper()
	rdb, err := redisclient.Open(server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestCheckFindsWhatEndangersJobs(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	ctx := t.Context()
	onDisk := open(t, redistest.Start(t))
	inMemory := open(t, redistest.Start(t, func(c *redisserver.Config) { c.AppendOnly = false }))
	tests := []struct {
		name     string
		rdb      redis.UniversalClient
		settings map[string]string
		needs    redisclient.Needs
		keys     []string
		fatal    bool
	}{
		{"a careful server", onDisk, map[string]string{"maxmemory": "100mb", "maxmemory-policy": "noeviction", "appendfsync": "everysec"}, redisclient.Needs{}, nil, false},
		{"no limit", onDisk, map[string]string{"maxmemory": "0"}, redisclient.Needs{}, []string{"maxmemory"}, false},
		{"nothing on disk", inMemory, nil, redisclient.Needs{}, []string{"appendonly", "maxmemory"}, false},
		{"the disk when the system likes", onDisk, map[string]string{"maxmemory": "100mb", "appendfsync": "no"}, redisclient.Needs{}, []string{"appendfsync"}, false},
		{"strict, but a reply comes before the fsync", onDisk, map[string]string{"appendfsync": "everysec"}, redisclient.Needs{Strict: true}, []string{"appendfsync"}, true},
		{"strict, and nothing on disk", inMemory, map[string]string{"maxmemory": "100mb"}, redisclient.Needs{Strict: true}, []string{"appendonly"}, true},
		{"strict, and every reply after the fsync", onDisk, map[string]string{"appendfsync": "always"}, redisclient.Needs{Strict: true}, nil, false},
		{"eviction", onDisk, map[string]string{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, redisclient.Needs{}, []string{"maxmemory-policy"}, true},
		{"eviction of keys that expire", onDisk, map[string]string{"maxmemory-policy": "volatile-ttl"}, redisclient.Needs{}, []string{"maxmemory-policy"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for key, value := range tt.settings {
				require.NoError(t, tt.rdb.ConfigSet(ctx, key, value).Err())
			}
			found, err := redisclient.Check(ctx, tt.rdb, tt.needs)
			require.NoError(t, err)
			var keys []string
			for _, f := range found {
				keys = append(keys, f.Key)
				require.NotEmpty(t, f.Advice)
			}
			require.Equal(t, tt.keys, keys)
			isFatal := func(f redisclient.Finding) bool { return f.Fatal }
			require.Equal(t, tt.fatal, slices.ContainsFunc(found, isFatal))

			var log bytes.Buffer
			err = redisclient.Report(ctx, tt.rdb, tt.needs, slog.New(slog.NewTextHandler(&log, nil)))
			require.Equal(t, tt.fatal, err != nil, "only what is fatal stops a process")
			if !tt.fatal {
				require.Equal(t, len(found), strings.Count(log.String(), "level=WARN"))
			}
		})
	}
}

// Managed services forbid CONFIG: what cannot be read is no finding.
func TestCheckPassesOverWhatItMayNotRead(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	server := redistest.Start(t, func(c *redisserver.Config) {
		c.Args = []string{"--rename-command", "CONFIG", ""}
	})
	found, err := redisclient.Check(t.Context(), open(t, server), redisclient.Needs{})
	require.NoError(t, err)
	require.Empty(t, found)
}

func TestCheckFindsClocksThatDiffer(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Dialer: scripted(func(command string) string {
		switch strings.ToLower(command) {
		case "time":
			return fmt.Sprintf("*2\r\n$10\r\n%d\r\n$1\r\n0\r\n", time.Now().Add(-time.Minute).Unix())
		case "ping":
			return "+PONG\r\n"
		default:
			return "-ERR unknown command\r\n"
		}
	}), Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { _ = rdb.Close() })
	found, err := redisclient.Check(t.Context(), rdb, redisclient.Needs{})
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "time", found[0].Key)
	require.Regexp(t, `by -(59s|1m0s|1m1s)`, found[0].Advice)
}

func TestAnUnreachableRedisIsNoReasonNotToStart(t *testing.T) {
	rdb, err := redisclient.Open("redis://:hunter2@127.0.0.1:1/0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	_, err = redisclient.Check(t.Context(), rdb, redisclient.Needs{})
	require.ErrorContains(t, err, "redis: ")
	var log bytes.Buffer
	require.NoError(t, redisclient.Report(t.Context(), rdb, redisclient.Needs{}, slog.New(slog.NewTextHandler(&log, nil))))
	require.Empty(t, log.String())
}

func TestLogToSendsTheLibrarysMessagesToDebug(t *testing.T) {
	var log bytes.Buffer
	redisclient.LogTo(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { redisclient.LogTo(discard()) })
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	require.Error(t, rdb.Ping(t.Context()).Err())
	require.NoError(t, rdb.Close())
	require.Contains(t, log.String(), `level=DEBUG msg="redis client" detail="redis: connection pool`)
}

// scripted is a dialer to a Redis that answers one command with one reply.
func scripted(reply func(command string) string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			buf := make([]byte, 4096)
			for {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				// "*2\r\n$4\r\nPING\r\n...": the third line is the command.
				for _, command := range strings.Split(string(buf[:n]), "*")[1:] {
					lines := strings.Split(command, "\r\n")
					answer := "+OK\r\n"
					if len(lines) > 2 {
						answer = reply(lines[2])
					}
					if _, err := io.WriteString(server, answer); err != nil {
						return
					}
				}
			}
		}()
		return client, nil
	}
}
