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
	// dialTimeout bounds one try to connect. go-redis' own default is 5 s and five tries, so that one dead
	// host among Sentinels or Cluster nodes would cost a caller 25 s.
	dialTimeout = time.Second
	dialTries   = 2
)

// Parse reads a Redis address. It accepts
//
//	redis://[user:password@]host:port[/db]           one server
//	rediss://...                                      the same over TLS
//	redis://h1:port,h2:port,...                       Redis Cluster
//	redis-cluster://h1:port[,...]                     the same, also with a single address; rediss-cluster:// over TLS
//	redis-sentinel://[user:password@]h1:port,h2:port[/db]?master=name[&sentinel_password=...]
//
// and returns go-redis' options with Ferry's settings. The error never repeats a password.
func Parse(rawURL string) (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(rawURL), "://")
	if !ok {
		return nil, errors.New("redis url: want redis://host:port/db, rediss://, redis-cluster://, redis-sentinel:// or a comma list of cluster nodes")
	}
	sentinel, cluster := false, false
	switch scheme {
	case "redis", "rediss":
	case "redis-sentinel":
		sentinel, scheme = true, "redis"
	case "redis-cluster":
		cluster, scheme = true, "redis"
	case "rediss-cluster":
		cluster, scheme = true, "rediss"
	default:
		return nil, fmt.Errorf("redis url: unknown scheme %q; want redis, rediss, redis-cluster, rediss-cluster or redis-sentinel", scheme)
	}
	port := "6379"
	if sentinel {
		port = "26379"
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

		IsClusterMode: cluster || len(others) > 0 && !sentinel,
	}
	if err := applyQuery(opts, query, sentinel); err != nil {
		if _, tail, _ := strings.Cut(first, "?"); strings.Contains(tail, "@") {
			return nil, errNotURL // the question mark may belong to a password
		}
		return nil, err
	}
	if slices.Contains(opts.Addrs, "") {
		return nil, errors.New("redis url: a host in the list is empty")
	}
	if opts.IsClusterMode && opts.DB != 0 {
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
	opts.DialTimeout = dialTimeout
	opts.DialerRetries = dialTries
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
	return open(opts), nil
}

func open(opts *redis.UniversalOptions) redis.UniversalClient {
	if opts.IsClusterMode {
		cluster := opts.Cluster()
		cluster.ClusterStateReloadInterval = clusterReload
		return redis.NewClusterClient(cluster)
	}
	return redis.NewUniversalClient(opts)
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

// LogTo sends go-redis' own messages, of which an outage makes hundreds, to a logger at debug level. They
// are global to the process: only main calls it.
func LogTo(log *slog.Logger) { redis.SetLogger(libraryLog{log}) }

type libraryLog struct{ log *slog.Logger }

// Printf implements go-redis' logger.
func (l libraryLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.LogAttrs(ctx, slog.LevelDebug, "redis client", slog.String("detail", fmt.Sprintf(format, v...)))
}
