package redisclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/logtest"
)

// fake is a Redis that can be broken.
type fake struct {
	mu     sync.Mutex // guards what follows
	mode   mode
	memory string // reply to INFO
	conns  []net.Conn
	dials  int
}

type mode int

const (
	answers mode = iota
	refuses      // connections; those it has are cut
	silent       // accepts and reads, never answers
	loads        // its data
)

func (f *fake) set(m mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode = m
	if m == refuses {
		for _, c := range f.conns {
			_ = c.Close()
		}
		f.conns = nil
	}
}

func (f *fake) has(used, limit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.memory = fmt.Sprintf("# Memory\r\nused_memory:%d\r\nused_memory_rss:1\r\nmaxmemory:%d\r\n", used, limit)
}

func (f *fake) dialed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials
}

func (f *fake) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials++
	if f.mode == refuses {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	ours, theirs := net.Pipe()
	f.conns = append(f.conns, ours)
	go f.serve(ours)
	return theirs, nil
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for _, command := range strings.Split(string(buf[:n]), "*")[1:] {
			name := strings.ToLower(strings.Split(command, "\r\n")[2])
			if reply := f.reply(name); reply != "" {
				if _, err := io.WriteString(c, reply); err != nil {
					return
				}
			}
		}
	}
}

func (f *fake) reply(command string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.mode == silent:
		return ""
	case f.mode == loads:
		return "-LOADING Redis is loading the dataset in memory\r\n"
	case command == "hello":
		return "-ERR unknown command 'hello'\r\n"
	case command == "info" && f.memory == "":
		return "-NOPERM this user has no permissions to run the 'info' command\r\n"
	case command == "info":
		return fmt.Sprintf("$%d\r\n%s\r\n", len(f.memory), f.memory)
	default:
		return "+OK\r\n"
	}
}

func (f *fake) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:1", Dialer: f.dial, Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true, MaxRetries: 1, DialerRetries: 1,
		// It would look a name up, on a goroutine outside of the test's time.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// watched runs a test in virtual time on a fake, its health, and a client that is guarded by it.
func watched(t *testing.T, test func(t *testing.T, f *fake, h *Health, rdb *redis.Client, log *logged)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f, log := &fake{}, &logged{}
		f.has(10, 100)
		h := watch(f.client(), HealthConfig{}, slog.New(slog.NewTextHandler(log, nil)))
		rdb := f.client()
		h.Guard(rdb)
		defer func() {
			f.set(refuses)  // ends what still serves
			_ = rdb.Close() // nothing is left to lose
			h.Close()
		}()
		synctest.Wait()
		test(t, f, h, rdb, log)
	})
}

// logged is what Health has written.
type logged struct{ logtest.Buffer }

func (l *logged) lines() int { return strings.Count(l.String(), "\n") }

func TestHealthNoticesAnOutageAndItsEnd(t *testing.T) {
	for name, how := range map[string]mode{"refuses": refuses, "silent": silent, "loads its data": loads} {
		t.Run(name, func(t *testing.T) {
			watched(t, func(t *testing.T, f *fake, h *Health, _ *redis.Client, log *logged) {
				time.Sleep(time.Minute + 10*time.Millisecond)
				require.Empty(t, log.String())
				require.True(t, h.Status().Up)

				f.set(how)
				time.Sleep(probeEvery + probeLimit)
				synctest.Wait()
				require.True(t, h.Away())
				require.WithinDuration(t, time.Now(), h.Status().Since, probeEvery+probeLimit)
				time.Sleep(10 * time.Second)
				f.set(answers)
				time.Sleep(probeEvery + probeLimit)
				synctest.Wait()
				require.False(t, h.Away())
				require.Equal(t, 2, log.lines(), log)
				require.Regexp(t, `level=ERROR msg="redis is away" cause=.*\n.*level=INFO msg="redis is back" away_ms=1\d{4}\n$`, log.String())
			})
		})
	}
}

func TestACommandThatFailsMakesTheProbeComeSooner(t *testing.T) {
	watched(t, func(t *testing.T, f *fake, h *Health, rdb *redis.Client, _ *logged) {
		time.Sleep(10 * time.Millisecond)
		f.set(refuses)
		require.ErrorIs(t, rdb.Get(t.Context(), "key").Err(), ErrAway)
		time.Sleep(100 * time.Millisecond) // the probe's second try
		require.True(t, h.Away())
	})
}

// A probe that fails while commands are answered has failed for a reason of its own.
func TestTrafficIsAProofOfLife(t *testing.T) {
	watched(t, func(t *testing.T, f *fake, h *Health, rdb *redis.Client, log *logged) {
		busy := time.Now()
		h.served.Store(&busy)
		f.set(silent)
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			now := time.Now()
			h.served.Store(&now)
		}
		require.False(t, h.Away())
		time.Sleep(probeEvery + 2*probeLimit)
		require.True(t, h.Away())
		require.Equal(t, 1, log.lines())
	})
}

func TestGuard(t *testing.T) {
	watched(t, func(t *testing.T, f *fake, h *Health, rdb *redis.Client, _ *logged) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "key", 1, 0).Err())
		f.set(silent)
		begun := time.Now()
		err := rdb.Get(ctx, "key").Err()
		require.ErrorIs(t, err, ErrAway)
		require.Equal(t, commandLimit, time.Since(begun), "a command without a deadline has one")
		require.True(t, h.Away(), "noticed meanwhile")

		begun, dials := time.Now(), f.dialed()
		err = rdb.Get(ctx, "key").Err()
		require.ErrorIs(t, err, ErrAway)
		require.ErrorContains(t, err, "redis is away since 2000-01-01T00:00:")
		_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Get(ctx, "key")
			return nil
		})
		require.ErrorIs(t, err, ErrAway)
		require.Zero(t, time.Since(begun), "at once")
		require.Equal(t, dials, f.dialed(), "and no dial")

		f.set(answers)
		time.Sleep(probeEvery + probeLimit)
		require.NoError(t, rdb.Set(ctx, "key", 1, 0).Err(), "and back by itself")
	})
}

// What Redis answers is for the caller, and so is a caller's own end.
func TestGuardMarksOutagesOnly(t *testing.T) {
	watched(t, func(t *testing.T, f *fake, h *Health, rdb *redis.Client, _ *logged) {
		f.has(0, 0)
		f.memory = ""
		err := rdb.Info(t.Context()).Err()
		require.ErrorContains(t, err, "NOPERM")
		require.NotErrorIs(t, err, ErrAway)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NotErrorIs(t, rdb.Get(ctx, "key").Err(), ErrAway)
		time.Sleep(10 * time.Second)
		require.False(t, h.Away())
		require.Zero(t, h.Status().Limit%100, "memory that may not be read is not known")
	})
}

func TestHealthSeesAFullRedis(t *testing.T) {
	watched(t, func(t *testing.T, f *fake, h *Health, _ *redis.Client, log *logged) {
		steps := []struct {
			used, limit int
			full        bool
		}{
			{79, 100, false},
			{80, 100, true},
			{79, 100, true}, // it would not stay so for long
			{76, 100, true},
			{74, 100, false},
			{79, 100, false},
			{99, 100, true},
			{99, 0, false}, // the limit was taken away
			{99, 200, false},
		}
		for _, s := range steps {
			f.has(s.used, s.limit)
			time.Sleep(2 * probeEvery)
			synctest.Wait()
			require.Equal(t, s.full, h.Full(), s)
			require.Equal(t, Status{Up: true, Since: h.Status().Since, Full: s.full, Used: int64(s.used), Limit: int64(s.limit)}, h.Status())
		}
		require.Equal(t, 4, log.lines(), log)
		require.Contains(t, log.String(), `msg="redis is nearly full: new jobs are refused" used_bytes=80 maxmemory_bytes=100 full_at=0.8`)
		require.Contains(t, log.String(), `msg="redis has room again" used_bytes=74`)
	})
}

// A cluster that has lost a master serves the rest: it is away when nobody answers.
func TestAClusterIsAwayWithAllItsMasters(t *testing.T) {
	nodes := map[string]*fake{"10.0.0.1:1": {}, "10.0.0.1:2": {}}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{
				{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "10.0.0.1:1"}}},
				{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: "10.0.0.1:2"}}},
			}, nil
		},
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return nodes[addr].dial(ctx, network, addr)
		},
		Protocol: 2, DisableIdentity: true, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = rdb.Close() })
	nodes["10.0.0.1:1"].has(10, 100)
	nodes["10.0.0.1:2"].has(90, 100)
	h := &Health{rdb: rdb}
	worst, err := h.memory(t.Context())
	require.NoError(t, err)
	require.Equal(t, usage{90, 100}, worst, "one that is full is enough")
	nodes["10.0.0.1:2"].set(refuses)
	worst, err = h.memory(t.Context())
	require.NoError(t, err)
	require.Equal(t, usage{10, 100}, worst)
	nodes["10.0.0.1:1"].set(refuses)
	_, err = h.memory(t.Context())
	require.True(t, isNetwork(err), err)
}

func TestQuiet(t *testing.T) {
	away := slog.Any("error", fmt.Errorf("tasks: job 7: %w", fmt.Errorf("%w: %w", ErrAway, io.EOF)))
	tests := []struct {
		name  string
		level slog.Level // of the logger
		attr  slog.Attr
		want  []string // level of the lines of four records: two at once, one of another message, one a minute later
	}{
		{"an outage is news once", slog.LevelInfo, away, []string{"ERROR", "WARN", "ERROR"}},
		{"and then chatter", slog.LevelDebug, away, []string{"ERROR", "DEBUG", "WARN", "ERROR"}},
		{"another error is news each time", slog.LevelInfo, slog.Any("error", io.EOF), []string{"ERROR", "ERROR", "WARN", "ERROR"}},
		{"so is no error", slog.LevelInfo, slog.String("error", "redis is away"), []string{"ERROR", "ERROR", "WARN", "ERROR"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				all := slog.New(Quiet(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: tt.level})))
				log := all.With("job_id", "7").WithGroup("g")
				log.LogAttrs(t.Context(), slog.LevelError, "claim failed", slog.Int("n", 1), tt.attr)
				all.LogAttrs(t.Context(), slog.LevelError, "claim failed", tt.attr)
				log.LogAttrs(t.Context(), slog.LevelWarn, "caretaker", tt.attr)
				time.Sleep(quietFor)
				log.LogAttrs(t.Context(), slog.LevelError, "claim failed", tt.attr)
				require.Contains(t, b.String(), `level=ERROR msg="claim failed" job_id=7 g.n=1 g.error=`)
				var levels []string
				for _, level := range regexp.MustCompile(`level=(\w+)`).FindAllStringSubmatch(b.String(), -1) {
					levels = append(levels, level[1])
				}
				require.Equal(t, tt.want, levels)
			})
		})
	}
}

func TestServerCheck(t *testing.T) {
	good := server{
		version: "7.2.4", policy: "noeviction", maxmemory: "100", appendonly: "yes", appendfsync: "always", waitAOF: true, replicas: 1, minReplicas: "1",
	}
	strict := Needs{Strict: true}
	tests := []struct {
		name   string
		change func(*server)
		needs  Needs
		key    string // of the only finding; "" is none
		fatal  bool
	}{
		{"all is well", func(*server) {}, Needs{Strict: true, Replicas: 1}, "", false},
		{"nothing can be read", func(s *server) { *s = server{} }, Needs{}, "", false},
		{"nothing can be read, and somebody counts on it", func(s *server) { *s = server{} }, strict, "appendonly", true},
		{"6.2 will do", func(s *server) { s.version = "6.2.0" }, Needs{}, "", false},
		{"6.0 will not", func(s *server) { s.version = "6.0.16" }, Needs{}, "redis_version", true},
		{"nor will 5", func(s *server) { s.version = "5.0.7" }, Needs{}, "redis_version", true},
		{"a version of somebody else's is let pass", func(s *server) { s.version = "unstable" }, Needs{}, "", false},
		{"a failover may lose jobs", func(s *server) { s.minReplicas = "0" }, Needs{}, "min-replicas-to-write", false},
		{"no replica, no failover", func(s *server) { s.minReplicas, s.replicas = "0", 0 }, Needs{}, "", false},
		{"the system's time for the disk", func(s *server) { s.appendfsync = "no" }, Needs{}, "appendfsync", false},
		{"everysec will do", func(s *server) { s.appendfsync = "everysec" }, Needs{}, "", false},
		{"but not for strict", func(s *server) { s.appendfsync = "everysec" }, strict, "appendfsync", true},
		{"strict without replicas needs no WAITAOF", func(s *server) { s.waitAOF = false }, strict, "", false},
		{"with replicas it does", func(s *server) { s.waitAOF = false }, Needs{Strict: true, Replicas: 1}, "waitaof", true},
		{"a replica may still come", func(*server) {}, Needs{Strict: true, Replicas: 2}, "connected_slaves", false},
		{"clocks differ", func(s *server) { s.skew = -6 * time.Second }, Needs{}, "time", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good
			tt.change(&s)
			found := s.check(tt.needs)
			if tt.key == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1, found)
			require.Equal(t, tt.key, found[0].Key)
			require.Equal(t, tt.fatal, found[0].Fatal)
		})
	}
}

func FuzzParseMemory(f *testing.F) {
	f.Add("# Memory\r\nused_memory:1024\r\nmaxmemory:2048\r\n")
	f.Add("used_memory:-1\nmaxmemory:99999999999999999999\n\n:\nused_memory")
	f.Fuzz(func(t *testing.T, info string) {
		u := parseMemory(info)
		require.GreaterOrEqual(t, u.used, int64(0))
		require.GreaterOrEqual(t, u.limit, int64(0))
		require.GreaterOrEqual(t, u.share(), 0.0)
	})
}
