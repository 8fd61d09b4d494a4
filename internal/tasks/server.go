package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// ServerConfig is how one upstream's jobs are taken from the queue.
type ServerConfig struct {
	Upstream    string
	Concurrency int           // jobs in flight in this process
	Poll        time.Duration // how often an idle server looks for a job; default 20ms
	Drain       time.Duration // how long running calls may go on after a stop; default 30s
	Quiet       func() bool   // whether Redis is known to be away, of which asynq need not tell; nil: never
}

const (
	defaultPoll  = 20 * time.Millisecond
	defaultDrain = 30 * time.Second
	// forwardEvery is how often asynq looks for waiting jobs that are due.
	forwardEvery = 500 * time.Millisecond
	// handBack is how long asynq waits for handlers whose calls have been stopped; they only write to
	// Redis any more.
	handBack = 10 * time.Second
)

// Server takes the jobs of one upstream and gives them to a handler. An upstream has a server of its
// own, so that a slow one cannot take the places of another's jobs.
type Server struct {
	cfg     ServerConfig
	asynq   *asynq.Server
	handler *Handler
	calls   *Calls
}

// NewServer returns a server. rdb should have [redisclient.RerunScripts], and nothing else should use
// it: asynq's acknowledgements then survive a restart of Redis.
//
// [redisclient.RerunScripts]: https://pkg.go.dev/github.com/ferry-queue/ferry/internal/redisclient#RerunScripts
func NewServer(rdb redis.UniversalClient, cfg ServerConfig, handler *Handler, calls *Calls, log *slog.Logger) *Server {
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Drain == 0 {
		cfg.Drain = defaultDrain
	}
	if cfg.Quiet == nil {
		cfg.Quiet = func() bool { return false }
	}
	queues := make(map[string]int, len(Priorities()))
	for _, p := range Priorities() {
		queues[QueueName(cfg.Upstream, p)] = p.weight()
	}
	return &Server{
		cfg: cfg, handler: handler, calls: calls,
		asynq: asynq.NewServerFromRedisClient(rdb, asynq.Config{
			Concurrency:              cfg.Concurrency,
			Queues:                   queues,
			TaskCheckInterval:        cfg.Poll,
			DelayedTaskCheckInterval: forwardEvery,
			ShutdownTimeout:          handBack,
			RetryDelayFunc:           retryDelay,
			IsFailure:                func(error) bool { return false }, // tries are ours to count
			Logger:                   asynqLog{log: log.With(slog.String("upstream", cfg.Upstream)), quiet: cfg.Quiet},
			LogLevel:                 asynq.InfoLevel,
		}),
	}
}

// Run takes jobs until ctx ends, and then gives the calls in flight Drain to finish. What is left goes
// back to the queue, with no attempt spent but those already sent.
func (s *Server) Run(ctx context.Context) error {
	if err := s.asynq.Start(s.handler); err != nil {
		return fmt.Errorf("tasks: upstream %s: %w", s.cfg.Upstream, err)
	}
	<-ctx.Done()
	s.asynq.Stop()
	stop := time.AfterFunc(s.cfg.Drain, s.calls.Drain)
	defer stop.Stop()
	s.handler.close()
	s.asynq.Shutdown()
	return nil
}

// retryDelay tells asynq when to run a task again. asynq rounds the time down to a second; a wait that an
// upstream asked for must not end early.
func retryDelay(_ int, err error, _ *asynq.Task) time.Duration {
	var back *comeBack
	switch {
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	case !errors.As(err, &back):
		return time.Second
	case back.delay <= 0:
		return 0
	default:
		now := time.Now()
		return ceilSecond(now.Add(back.delay)).Sub(now)
	}
}

// asynqLog writes asynq's own messages to slog. What asynq calls information is chatter to us. Its warnings
// and errors are about Redis, one for each loop and each job: while Redis is away they are chatter too.
type asynqLog struct {
	log   *slog.Logger
	quiet func() bool
}

var _ asynq.Logger = asynqLog{}

func (l asynqLog) write(level slog.Level, args []any) {
	detail := fmt.Sprint(args...)
	switch {
	case l.quiet():
		level = slog.LevelDebug
	case level == slog.LevelWarn && strings.HasPrefix(detail, "Retry exhausted"):
		level = slog.LevelDebug // the job has ended, and its own log line says how
	}
	l.log.LogAttrs(context.Background(), level, "asynq", slog.String("detail", detail))
}

func (l asynqLog) Debug(args ...any) { l.write(slog.LevelDebug, args) }
func (l asynqLog) Info(args ...any)  { l.write(slog.LevelDebug, args) }
func (l asynqLog) Warn(args ...any)  { l.write(slog.LevelWarn, args) }
func (l asynqLog) Error(args ...any) { l.write(slog.LevelError, args) }

// Fatal logs and goes on: only main ends the process.
func (l asynqLog) Fatal(args ...any) { l.write(slog.LevelError, args) }
