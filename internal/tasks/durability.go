package tasks

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Durability says when a submission counts as accepted.
type Durability string

const (
	// Relaxed is once Redis has the job: its own appendfsync decides how much a power failure may take.
	Relaxed Durability = "relaxed"
	// Strict is once the job is on the disk of Redis.
	Strict Durability = "strict"
)

// durable carries out the scripts whose effect must last.
type durable struct {
	strict   bool
	replicas int // must have it on disk too
}

const (
	// replicasWait is how long Redis waits for its replicas. Its own fsync it has made before it replies.
	replicasWait = 1500 * time.Millisecond
	// A key of the cluster that has moved is looked for again, so often and after this.
	placeTries = 3
	placeWait  = 100 * time.Millisecond
)

func (d durable) touch() string {
	if d.strict {
		return "1"
	}
	return ""
}

// run runs a script on the master of its keys and returns its reply. If only the confirmation failed there
// is a reply too, and the error is an *[UnconfirmedError] without an ID.
func (d durable) run(ctx context.Context, rdb redis.UniversalClient, script *redis.Script, keys []string, args []any) (reply []any, err error) {
	if !d.strict {
		return script.Run(ctx, rdb, keys, args...).Slice()
	}
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		return d.runOn(ctx, rdb, script, keys, args)
	}
	for range placeTries {
		var node *redis.Client
		if node, err = cluster.MasterForKey(ctx, keys[0]); err != nil {
			return nil, err
		}
		if reply, err = d.runOn(ctx, node, script, keys, args); !hasMoved(err) {
			break
		}
		cluster.ReloadState(ctx)
		if sleep(ctx, placeWait) != nil {
			break
		}
	}
	return reply, err
}

// hasMoved reports whether the server has no longer the key it was asked for.
func hasMoved(err error) bool {
	return redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "ASK") || redis.HasErrorPrefix(err, "READONLY")
}

// runOn sends the script, a WAITAOF and a question for the settings together, so that one server answers
// all three: a failover between them cannot make one answer for another.
func (d durable) runOn(ctx context.Context, node redis.UniversalClient, script *redis.Script, keys []string, args []any) ([]any, error) {
	var (
		result, copies *redis.Cmd
		config         *redis.MapStringStringCmd
	)
	send := func(run func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd) error {
		_, _ = node.Pipelined(ctx, func(p redis.Pipeliner) error { // each command has its own error
			result = run(ctx, p, keys, args...)
			copies = p.Do(ctx, "waitaof", 1, d.replicas, replicasWait.Milliseconds())
			config = p.ConfigGet(ctx, "append*")
			return nil
		})
		return result.Err()
	}
	err := send(script.EvalSha)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		err = send(script.Eval)
	}
	if err != nil {
		return nil, err
	}
	reply, err := result.Slice()
	if err != nil {
		return nil, err
	}
	if unconfirmed := d.confirm(copies, config); unconfirmed != nil {
		return reply, unconfirmed
	}
	return reply, nil
}

// confirm judges whether what was just written is on disk, and returns nil if so. Redis replies after its
// fsync only with appendfsync always, so that is what counts, as it stood at that moment. WAITAOF alone
// would not do: under everysec several versions answer it before the fsync, see redisclient.Check. It is
// asked for the replicas; a server older than 7.2, which does not know it, needs it for no more.
func (d durable) confirm(copies *redis.Cmd, config *redis.MapStringStringCmd) *UnconfirmedError {
	settings, err := config.Result()
	switch {
	case err != nil:
		return &UnconfirmedError{Reason: "the settings of Redis cannot be read", cause: err}
	case settings["appendonly"] != "yes" || settings["appendfsync"] != "always":
		return &UnconfirmedError{Reason: fmt.Sprintf("Redis has appendonly %s and appendfsync %s, where yes and always are needed",
			settings["appendonly"], settings["appendfsync"])}
	}
	acks, err := copies.Int64Slice()
	switch {
	case redis.HasErrorPrefix(err, "unknown command") && d.replicas == 0:
		return nil
	case err != nil || len(acks) != 2:
		return &UnconfirmedError{Reason: "Redis could not say what it has on disk", cause: err}
	case acks[0] < 1:
		return &UnconfirmedError{Reason: "Redis has not written its append-only file"}
	case acks[1] < int64(d.replicas):
		return &UnconfirmedError{Reason: fmt.Sprintf("%d of %d replicas have it on disk", acks[1], d.replicas)}
	default:
		return nil
	}
}
