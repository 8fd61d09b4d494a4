package redisclient

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Finding is something about a Redis server that an operator should know before trusting it with jobs.
type Finding struct {
	Fatal  bool   // Ferry must not start: the setting corrupts the queue, or breaks a promise that was asked for
	Key    string // Redis' own name of the setting
	Advice string
}

// Needs is what an operator has asked of Redis beyond what Ferry itself needs.
type Needs struct {
	Strict   bool // a reply of Redis must mean that the write is on disk
	Replicas int  // and on the disks of this many replicas
}

// Check reads the settings of the server, or of every master of a cluster, and returns what is wrong with
// them. A setting that cannot be read (managed services forbid CONFIG) is passed over, unless Needs.Strict
// hangs on it. Errors are those of the connection.
func Check(ctx context.Context, rdb redis.UniversalClient, needs Needs) ([]Finding, error) {
	var mu sync.Mutex // guards found
	var found []Finding
	err := anyMaster(ctx, rdb, func(ctx context.Context, node redis.UniversalClient) error {
		s, err := readServer(ctx, node)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		found = append(found, s.check(needs)...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return strings.Compare(a.Key+a.Advice, b.Key+b.Advice)
	})
	return slices.Compact(found), nil // the nodes of a cluster have their settings in common
}

// server is what Check looks at. Texts are "" if they cannot be read.
type server struct {
	version                 string
	policy, maxmemory       string
	appendonly, appendfsync string
	minReplicas             string
	replicas                int // attached
	waitAOF                 bool
	skew                    time.Duration // how far its clock is ahead of ours, give or take a round trip
}

func readServer(ctx context.Context, node redis.UniversalClient) (server, error) {
	if err := node.Ping(ctx).Err(); err != nil {
		return server{}, err
	}
	s := server{
		version:     infoValue(ctx, node, "server", "redis_version"),
		policy:      configValue(ctx, node, "maxmemory-policy"),
		maxmemory:   configValue(ctx, node, "maxmemory"),
		appendonly:  configValue(ctx, node, "appendonly"),
		appendfsync: configValue(ctx, node, "appendfsync"),
		minReplicas: configValue(ctx, node, "min-replicas-to-write"),
	}
	s.replicas, _ = strconv.Atoi(infoValue(ctx, node, "replication", "connected_slaves")) // unread: none
	known, err := node.Do(ctx, "command", "info", "waitaof").Slice()
	s.waitAOF = err == nil && len(known) == 1 && known[0] != nil
	before := time.Now()
	if theirs, err := node.Time(ctx).Result(); err == nil {
		s.skew = theirs.Sub(before.Add(time.Since(before) / 2))
	}
	return s, nil
}

func (s server) check(needs Needs) (found []Finding) {
	add := func(fatal bool, key, format string, args ...any) {
		found = append(found, Finding{Fatal: fatal, Key: key, Advice: fmt.Sprintf(format, args...)})
	}
	if older(s.version, 6, 2) {
		add(true, "redis_version", "is %s: Ferry's scripts and asynq's need 6.2 or later", s.version)
	}
	if s.policy != "" && s.policy != "noeviction" {
		add(true, "maxmemory-policy", "is %s: Redis may drop jobs when memory runs short; set it to noeviction", s.policy)
	}
	if s.maxmemory == "0" {
		add(false, "maxmemory", "is not set: Redis may grow until the system kills it; set a limit below the machine's memory")
	}
	if s.skew.Abs() > 5*time.Second {
		add(false, "time", "differs from this machine's clock by %s: delayed jobs would start, and jobs expire, early or late; synchronise the clocks", s.skew.Round(time.Second))
	}
	if s.replicas > 0 && s.minReplicas == "0" {
		add(false, "min-replicas-to-write", "is 0: a failover may lose jobs that were accepted and had not reached a replica; set it to 1")
	}
	if needs.Strict {
		return append(found, s.checkStrict(needs.Replicas)...)
	}
	if s.appendonly == "no" {
		add(false, "appendonly", "is no: a restart of Redis loses jobs; set appendonly yes")
	} else if s.appendfsync == "no" {
		add(false, "appendfsync", "is no: a power failure may lose what was accepted in the last 30 seconds or so; set it to everysec or always")
	}
	return found
}

// checkStrict says why a reply of this server would not mean that the write is on disk.
//
// WAITAOF does not make up for another appendfsync: under no it waits for ever, and under everysec several
// versions answer up to a second before the fsync (https://github.com/redis/redis/pull/13793; so does
// Valkey 8.0.1).
func (s server) checkStrict(replicas int) (found []Finding) {
	fatal := func(key, format string, args ...any) {
		found = append(found, Finding{Fatal: true, Key: key, Advice: fmt.Sprintf(format, args...)})
	}
	const or = ", or set jobs.durability to relaxed"
	switch {
	case s.appendonly == "" || s.appendfsync == "":
		fatal("appendonly", "cannot be read, so nobody can say whether a write is on disk: allow CONFIG GET"+or)
	case s.appendonly != "yes":
		fatal("appendonly", "is %s: nothing is on disk; set appendonly yes and appendfsync always"+or, s.appendonly)
	case s.appendfsync != "always":
		fatal("appendfsync", "is %s: Redis answers before a write is on disk; set it to always"+or, s.appendfsync)
	}
	if replicas > 0 && !s.waitAOF {
		fatal("waitaof", "is unknown to version %s, and jobs.durability_replicas needs it: use Redis 7.2 or later", s.version)
	}
	if s.replicas < replicas {
		found = append(found, Finding{Key: "connected_slaves", Advice: fmt.Sprintf(
			"is %d, below jobs.durability_replicas: jobs are not accepted until %d are attached", s.replicas, replicas)})
	}
	return found
}

// older reports whether a version such as 7.0.15 is before major.minor. One that cannot be read is not.
func older(version string, major, minor int) bool {
	var x, y int
	if n, _ := fmt.Sscanf(version, "%d.%d", &x, &y); n < 2 { // n says what was read
		return false
	}
	return x < major || x == major && y < minor
}

func configValue(ctx context.Context, node redis.UniversalClient, key string) string {
	values, err := node.ConfigGet(ctx, key).Result()
	if err != nil {
		return ""
	}
	return values[key]
}

func infoValue(ctx context.Context, node redis.UniversalClient, section, key string) string {
	text, err := node.Info(ctx, section).Result()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Report runs [Check] and logs what it finds. The error is a setting with which Ferry must not work. A Redis
// that cannot be reached yet is none: it may come, and until then [Health] says that it is away.
func Report(ctx context.Context, rdb redis.UniversalClient, needs Needs, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	found, err := Check(ctx, rdb, needs)
	if err != nil {
		return nil
	}
	for _, f := range found {
		if f.Fatal {
			return fmt.Errorf("redis: %s %s", f.Key, f.Advice)
		}
		log.LogAttrs(ctx, slog.LevelWarn, "redis setting", slog.String("key", f.Key), slog.String("advice", f.Advice))
	}
	return nil
}
