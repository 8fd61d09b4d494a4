// Package redisclient opens the one kind of Redis client all of Ferry uses.
//
// The idea: every setting that decides how Ferry behaves when Redis is slow, restarts or fails over
// is made here, once, whatever the deployment (single node, Sentinel, Cluster), so that the API, the
// workers, asynq's inspector and the dashboard see the same Redis.
package redisclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	// readTimeout bounds one reply. It is well above Redis' slowest command of ours (a few
	// milliseconds) and well below the 30 s lease of a running task.
	readTimeout = 4 * time.Second
	// clusterReload is how often the Cluster topology is read again. go-redis' own default is 60 s,
	// and a dead master is not noticed before (measured: 53 s without an enqueue).
	clusterReload = 2 * time.Second
)

// Parse reads a Redis address. It accepts
//
//	redis://[user:password@]host:port[/db]           one server
//	rediss://...                                      the same over TLS
//	redis://h1:port,h2:port,...                       Redis Cluster
//	redis-sentinel://[user:password@]h1:port,h2:port[/db]?master=name[&sentinel_password=...]
//
// and returns go-redis' options with Ferry's settings. The error never repeats a password.
func Parse(rawURL string) (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(rawURL), "://")
	if !ok {
		return nil, errors.New("redis url: want redis://host:port/db, rediss://, redis-sentinel:// or a comma list of cluster nodes")
	}
	sentinel := scheme == "redis-sentinel"
	if !sentinel && scheme != "redis" && scheme != "rediss" {
		return nil, fmt.Errorf("redis url: unknown scheme %q; want redis, rediss or redis-sentinel", scheme)
	}
	port := "6379"
	if sentinel {
		scheme, port = "redis", "26379"
	}
	first, others := splitHosts(rest, port)
	u, err := url.Parse(scheme + "://" + first)
	if err != nil || strings.Contains(u.Path+u.Fragment, "@") {
		return nil, errNotURL
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errNotURL
	}
	u.RawQuery = ""
	single, err := redis.ParseURL(u.String())
	if err != nil {
		// What go-redis objects to may be a piece of a password.
		return nil, errors.New("redis url: want a database number such as /0 after the address, and nothing else")
	}
	opts := &redis.UniversalOptions{
		Addrs:     append([]string{single.Addr}, others...),
		DB:        single.DB,
		Username:  single.Username,
		Password:  single.Password,
		TLSConfig: single.TLSConfig,
	}
	if err := applyQuery(opts, query, sentinel); err != nil {
		return nil, err
	}
	if slices.Contains(opts.Addrs, "") {
		return nil, errors.New("redis url: a host in the list is empty")
	}
	if len(opts.Addrs) > 1 && !sentinel && opts.DB != 0 {
		return nil, fmt.Errorf("redis url: Redis Cluster has database 0 only, not %d", opts.DB)
	}
	applyDefaults(opts)
	return opts, nil
}

// errNotURL repeats nothing: what cannot be taken apart may hold a password anywhere.
var errNotURL = errors.New("redis url: not a URL (is a character in the password not percent-encoded?)")

// splitHosts takes "user:pw@h1:1,h2/0?x" apart into the same URL with the first host alone and the other
// hosts: net/url does not accept a list. A host without a port gets one.
func splitHosts(rest, port string) (first string, others []string) {
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	userinfo, hosts := "", authority
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		userinfo, hosts = authority[:at+1], authority[at+1:]
	}
	list := strings.Split(hosts, ",")
	for i, h := range list {
		h = strings.TrimSpace(h)
		if h != "" && strings.LastIndex(h, ":") <= strings.LastIndex(h, "]") { // no colon, or only within [::1]
			h += ":" + port
		}
		list[i] = h
	}
	return userinfo + list[0] + tail, list[1:]
}

func applyQuery(opts *redis.UniversalOptions, query url.Values, sentinel bool) error {
	for key, values := range query {
		value := values[len(values)-1]
		switch key {
		case "master":
			opts.MasterName = value
		case "sentinel_username":
			opts.SentinelUsername = value
		case "sentinel_password":
			opts.SentinelPassword = value
		case "pool_size":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return fmt.Errorf("redis url: pool_size: %q is not a positive number", value)
			}
			opts.PoolSize = n
		default:
			if strings.Contains(key, "@") {
				return errNotURL
			}
			return fmt.Errorf("redis url: unknown parameter %q; want master, sentinel_username, sentinel_password or pool_size", key)
		}
	}
	switch {
	case sentinel && opts.MasterName == "":
		return errors.New("redis url: redis-sentinel:// needs ?master=<name>")
	case !sentinel && opts.MasterName != "":
		return errors.New("redis url: master goes with redis-sentinel:// only")
	}
	return nil
}

func applyDefaults(opts *redis.UniversalOptions) {
	opts.ReadTimeout = readTimeout
	opts.WriteTimeout = readTimeout
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = 3
	// Server-push notices of maintenance exist on one vendor's service only, and asking for them costs
	// a look-up at each connect.
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// Open returns a client for a Redis address as [Parse] reads it. It does not dial: an unreachable
// Redis is an error of the first command.
func Open(rawURL string) (redis.UniversalClient, error) {
	opts, err := Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if opts.MasterName == "" && len(opts.Addrs) > 1 {
		cluster := opts.Cluster()
		cluster.ClusterStateReloadInterval = clusterReload
		return redis.NewClusterClient(cluster), nil
	}
	return redis.NewUniversalClient(opts), nil
}

// Display returns the address of a Redis URL without its credentials, for logs.
func Display(rawURL string) string {
	opts, err := Parse(rawURL)
	if err != nil {
		return "invalid"
	}
	addr := strings.Join(opts.Addrs, ",")
	if opts.MasterName != "" {
		return "sentinel " + addr + " master " + opts.MasterName
	}
	return addr
}

// Finding is something about a Redis server that an operator should know before trusting it with jobs.
type Finding struct {
	Fatal  bool   // Ferry must not start: the setting corrupts the queue
	Key    string // Redis' own name of the setting
	Advice string
}

// Check reads the server's settings and returns what is wrong with them. A setting that cannot be read
// (managed services forbid CONFIG) is passed over. Errors are those of the connection.
func Check(ctx context.Context, rdb redis.UniversalClient) ([]Finding, error) {
	if err := rdb.Ping(ctx).Err(); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	var found []Finding
	if policy := configValue(ctx, rdb, "maxmemory-policy"); policy != "" && policy != "noeviction" {
		found = append(found, Finding{
			Fatal: true, Key: "maxmemory-policy",
			Advice: "is " + policy + ": Redis may drop jobs when memory runs short; set it to noeviction",
		})
	}
	if aof := configValue(ctx, rdb, "appendonly"); aof == "no" {
		found = append(found, Finding{
			Key:    "appendonly",
			Advice: "is no: a restart of Redis loses jobs; set appendonly yes",
		})
	}
	if limit := configValue(ctx, rdb, "maxmemory"); limit == "0" {
		found = append(found, Finding{
			Key:    "maxmemory",
			Advice: "is not set: Redis may grow until the system kills it; set a limit below the machine's memory",
		})
	}
	if skew, ok := clockSkew(ctx, rdb); ok && skew.Abs() > 5*time.Second {
		found = append(found, Finding{
			Key:    "time",
			Advice: fmt.Sprintf("differs from this machine's clock by %s: leases would end early or late; synchronise the clocks", skew.Round(time.Second)),
		})
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Key, b.Key) })
	return found, nil
}

func configValue(ctx context.Context, rdb redis.UniversalClient, key string) string {
	values, err := rdb.ConfigGet(ctx, key).Result()
	if err != nil {
		return ""
	}
	return values[key]
}

// clockSkew says how far Redis' clock is ahead of ours, give or take a round trip.
func clockSkew(ctx context.Context, rdb redis.UniversalClient) (time.Duration, bool) {
	before := time.Now()
	theirs, err := rdb.Time(ctx).Result()
	if err != nil {
		return 0, false
	}
	ours := before.Add(time.Since(before) / 2)
	return theirs.Sub(ours), true
}

// Report runs [Check] and logs what it finds. A Redis that cannot be reached yet is logged, no error: it
// may come. The error is a setting with which Ferry must not work.
func Report(ctx context.Context, rdb redis.UniversalClient, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	found, err := Check(ctx, rdb)
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "redis cannot be reached yet", slog.Any("error", err))
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

// LogTo sends go-redis' own messages, of which an outage makes hundreds, to a logger at debug level. They
// are global to the process: only main calls it.
func LogTo(log *slog.Logger) { redis.SetLogger(libraryLog{log}) }

type libraryLog struct{ log *slog.Logger }

// Printf implements go-redis' logger.
func (l libraryLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.LogAttrs(ctx, slog.LevelDebug, "redis client", slog.String("detail", fmt.Sprintf(format, v...)))
}
