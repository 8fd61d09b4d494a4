package redisclient

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RerunScripts is a go-redis hook for the client that is handed to asynq's server. It runs a script
// again when the network failed under it, until the deadline of its context.
//
// asynq gives such a deadline (the task's lease) to exactly the scripts that end a run: done, complete,
// retry, archive, requeue. Its own second try is dead since v0.25 because it uses a context that has
// been cancelled already, so a Redis that restarts at that moment makes the finished job run again. A
// script without a deadline (the dequeue, the heartbeat) passes through untouched.
//
// A script that had been carried out before the connection broke answers "NOT FOUND" the second time:
// that is success.
type RerunScripts struct {
	// Draining is closed when the process begins to end; nil: never. A script that still fails some seconds
	// later is given up: what it would have told asynq is in the job's record, and whoever gets the task
	// again finds it there.
	Draining <-chan struct{}
}

var _ redis.Hook = RerunScripts{}

// OpenRerunning returns a client with that hook.
func OpenRerunning(rawURL string, draining <-chan struct{}) (redis.UniversalClient, error) {
	rdb, err := Open(rawURL)
	if err != nil {
		return nil, err
	}
	rdb.AddHook(RerunScripts{Draining: draining})
	return rdb, nil
}

const (
	rerunFirstWait = 50 * time.Millisecond
	rerunMaxWait   = time.Second
	rerunDrain     = 3 * time.Second
)

// DialHook passes through.
func (RerunScripts) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessPipelineHook passes through: asynq pipelines nothing that ends a run.
func (RerunScripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook runs a script with a deadline again after a network error.
func (r RerunScripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if _, bounded := ctx.Deadline(); !bounded || !isScript(cmd) {
			return err
		}
		rerun := false
		var drained time.Time // since when the process has been ending, as far as this loop has seen
		for wait := rerunFirstWait; isNetwork(err); wait = min(2*wait, rerunMaxWait) {
			if drained.IsZero() && r.ending() {
				drained = time.Now()
			}
			late := !drained.IsZero() && time.Since(drained) >= rerunDrain
			if late || sleep(ctx, wait) != nil {
				return err
			}
			rerun = true
			cmd.SetErr(nil)
			err = next(ctx, cmd)
		}
		if rerun && err != nil && strings.HasPrefix(err.Error(), "NOT FOUND") {
			cmd.SetErr(nil)
			return nil
		}
		return err
	}
}

func (r RerunScripts) ending() bool {
	select {
	case <-r.Draining:
		return true
	default:
		return false
	}
}

// isScript keeps the hook off the handshake commands of a new connection, which hooks see too and which
// can only fail again on the same dead connection.
func isScript(cmd redis.Cmder) bool {
	name := cmd.Name()
	return strings.EqualFold(name, "evalsha") || strings.EqualFold(name, "eval")
}

// isNetwork reports whether the command failed for want of a working Redis. A reply of Redis is final,
// except while it loads its data or has just been demoted.
func isNetwork(err error) bool {
	if err == nil || errors.Is(err, redis.Nil) || errors.Is(err, context.Canceled) || errors.Is(err, redis.ErrClosed) {
		return false
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	for _, passing := range []string{"LOADING ", "READONLY ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN "} {
		if strings.HasPrefix(reply.Error(), passing) {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
