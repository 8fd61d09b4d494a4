package redisclient_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// reply is an answer of Redis, as go-redis marks it.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

var _ redis.Error = reply("")

// run gives a command to the hook and lists what the rest of the chain answers, in order; the last answer
// repeats. It returns the hook's result and how often the chain was asked.
func run(ctx context.Context, cmd redis.Cmder, answers ...error) (asked int, err error) {
	return runDraining(ctx, nil, cmd, answers...)
}

func runDraining(ctx context.Context, draining <-chan struct{}, cmd redis.Cmder, answers ...error) (asked int, err error) {
	err = redisclient.RerunScripts{Draining: draining}.ProcessHook(func(_ context.Context, cmd redis.Cmder) error {
		answer := answers[min(asked, len(answers)-1)]
		asked++
		cmd.SetErr(answer)
		return answer
	})(ctx, cmd)
	return asked, err
}

func TestRerunScripts(t *testing.T) {
	cut := fmt.Errorf("read: %w", io.EOF)
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	tests := []struct {
		name    string
		command string
		answers []error
		want    string // of the error; "" is success
		asked   int
		takes   time.Duration
	}{
		{"a script that works runs once", "evalsha", []error{nil}, "", 1, 0},
		{"a cut connection runs it again", "evalsha", []error{cut, nil}, "", 2, 50 * time.Millisecond},
		{"eval too", "EVAL", []error{cut, nil}, "", 2, 50 * time.Millisecond},
		{"waits double up to a second", "evalsha", []error{refused, refused, refused, refused, refused, refused, nil}, "", 7, 2550 * time.Millisecond},
		{"not found after a run that was lost is success", "evalsha", []error{cut, reply("NOT FOUND")}, "", 2, 50 * time.Millisecond},
		{"not found at once is an error", "evalsha", []error{reply("NOT FOUND")}, "NOT FOUND", 1, 0},
		{"another answer after a run that was lost stands", "evalsha", []error{cut, reply("ERR no")}, "ERR no", 2, 50 * time.Millisecond},
		{"a script that is unknown is the caller's business", "evalsha", []error{cut, reply("NOSCRIPT no")}, "NOSCRIPT no", 2, 50 * time.Millisecond},
		{"a loading server is asked again", "evalsha", []error{reply("LOADING Redis is loading"), nil}, "", 2, 50 * time.Millisecond},
		{"a demoted master is asked again", "evalsha", []error{reply("READONLY You can't write"), nil}, "", 2, 50 * time.Millisecond},
		{"an empty reply is final", "evalsha", []error{redis.Nil}, redis.Nil.Error(), 1, 0},
		{"a client that is closed is final", "evalsha", []error{redis.ErrClosed}, redis.ErrClosed.Error(), 1, 0},
		{"a caller that went is final", "evalsha", []error{context.Canceled}, context.Canceled.Error(), 1, 0},
		{"other commands pass", "get", []error{cut}, cut.Error(), 1, 0},
		{"the handshake passes", "hello", []error{cut}, cut.Error(), 1, 0},
		{"it gives up at the deadline", "evalsha", []error{cut}, cut.Error(), 34, 30 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begun := time.Now()
				cmd := redis.NewCmd(ctx, tt.command, "sha", 0)
				asked, err := run(ctx, cmd, tt.answers...)
				if tt.want == "" {
					require.NoError(t, err)
					require.NoError(t, cmd.Err(), "the command shows no old error")
				} else {
					require.EqualError(t, err, tt.want)
				}
				require.Equal(t, tt.asked, asked)
				require.Equal(t, tt.takes, time.Since(begun))
			})
		})
	}
}

func TestADrainingProcessGivesUpSoon(t *testing.T) {
	for name, after := range map[string]time.Duration{"from the start": 0, "in the middle": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				draining := make(chan struct{})
				time.AfterFunc(after, func() { close(draining) })
				begun := time.Now()
				if after == 0 {
					<-draining
				}
				_, err := runDraining(ctx, draining, redis.NewCmd(ctx, "evalsha", "sha", 0), io.EOF)
				require.ErrorIs(t, err, io.EOF)
				require.InDelta(t, (after + 3*time.Second).Seconds(), time.Since(begun).Seconds(), 2)
			})
		})
	}
}

func TestAScriptWithoutADeadlineRunsOnce(t *testing.T) {
	asked, err := run(context.Background(), redis.NewCmd(t.Context(), "evalsha", "sha", 0), io.EOF)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 1, asked)
}

func TestDialsAndPipelinesPass(t *testing.T) {
	dialed, piped := false, false
	_, _ = redisclient.RerunScripts{}.DialHook(func(context.Context, string, string) (net.Conn, error) {
		dialed = true
		return nil, io.EOF
	})(t.Context(), "tcp", "")
	_ = redisclient.RerunScripts{}.ProcessPipelineHook(func(context.Context, []redis.Cmder) error {
		piped = true
		return io.EOF
	})(t.Context(), nil)
	require.True(t, dialed && piped)
}

// A real server goes and comes back under a script, as when it is upgraded.
func TestAScriptOutlivesARestartOfRedis(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	server := redistest.Start(t)
	rdb := open(t, server)
	rdb.AddHook(redisclient.RerunScripts{})
	script := redis.NewScript(`return redis.call("INCR", KEYS[1])`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, script.Run(ctx, rdb, []string{"n"}).Err())

	require.NoError(t, server.Kill())
	without, err := redisclient.Open(server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = without.Close() })
	require.Error(t, script.Run(ctx, without, []string{"n"}).Err(), "without the hook it fails")

	done := make(chan error, 1)
	go func() { done <- script.Run(ctx, rdb, []string{"n"}).Err() }()
	select {
	case err := <-done:
		t.Fatalf("the script ended while Redis was down: %v", err)
	case <-time.After(200 * time.Millisecond): // a few of its tries
	}
	require.NoError(t, server.Restart(ctx))
	require.NoError(t, <-done)
	n, err := rdb.Get(ctx, "n").Int()
	require.NoError(t, err)
	require.Equal(t, 2, n, "once before and once after")
}
