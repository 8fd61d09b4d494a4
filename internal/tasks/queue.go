package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/seal"
)

// Config is how jobs are kept and how patiently they are served.
type Config struct {
	MaxAttempts  int           // attempts that reach the upstream, per job; default 25
	ExpiresIn    time.Duration // an open job is given up after this; default 24h
	Retention    time.Duration // an ended job is kept for this; default 24h
	MaxRetention time.Duration // longest retention a client may ask for; default 30 days
	Keys         *seal.Ring    // by which prompts, answers and errors are sealed; nil: they are not
	Durability   Durability    // when a job counts as accepted; default Relaxed
	Replicas     int           // with Strict: replicas that must have the job on disk too; default 0
	MaxCrashes   int           // runs in a row that may panic or lose their worker before the job fails; default 5
}

const (
	defaultMaxAttempts  = 25
	defaultExpiresIn    = 24 * time.Hour
	defaultRetention    = 24 * time.Hour
	defaultMaxRetention = 30 * 24 * time.Hour
	defaultMaxCrashes   = 5

	// AttemptsLimit is the most attempts a job may ask for.
	AttemptsLimit = 1000
	// maxCrashesLimit is the most crashes a configuration may allow: each may cost a worker.
	maxCrashesLimit = 1000
)

// WithDefaults fills what is zero.
func (c Config) WithDefaults() Config {
	if c.MaxAttempts == 0 {
		c.MaxAttempts = defaultMaxAttempts
	}
	if c.ExpiresIn == 0 {
		c.ExpiresIn = defaultExpiresIn
	}
	if c.Retention == 0 {
		c.Retention = defaultRetention
	}
	if c.MaxRetention == 0 {
		c.MaxRetention = max(defaultMaxRetention, c.Retention)
	}
	if c.Durability == "" {
		c.Durability = Relaxed
	}
	if c.MaxCrashes == 0 {
		c.MaxCrashes = defaultMaxCrashes
	}
	return c
}

// Validate joins every problem, each with its key.
func (c Config) Validate() error {
	var errs []error
	if c.MaxAttempts < 1 || c.MaxAttempts > AttemptsLimit {
		errs = append(errs, fmt.Errorf("max_attempts: %d is not in 1 to %d", c.MaxAttempts, AttemptsLimit))
	}
	if c.ExpiresIn < time.Second {
		errs = append(errs, fmt.Errorf("expires_in: %s is shorter than 1s", c.ExpiresIn))
	}
	if c.Retention < time.Second {
		errs = append(errs, fmt.Errorf("retention: %s is shorter than 1s", c.Retention))
	}
	if c.Retention > c.MaxRetention {
		errs = append(errs, fmt.Errorf("retention: %s is above max_retention %s", c.Retention, c.MaxRetention))
	}
	if c.Durability != Relaxed && c.Durability != Strict {
		errs = append(errs, fmt.Errorf("durability: %q is not one of %s, %s", c.Durability, Relaxed, Strict))
	}
	if c.Replicas < 0 || c.Replicas > 0 && c.Durability != Strict {
		errs = append(errs, fmt.Errorf("durability_replicas: %d is not 0 or more, and 0 unless durability is %s", c.Replicas, Strict))
	}
	if c.MaxCrashes < 1 || c.MaxCrashes > maxCrashesLimit {
		errs = append(errs, fmt.Errorf("max_crashes: %d is not in 1 to %d", c.MaxCrashes, maxCrashesLimit))
	}
	return errors.Join(errs...)
}

const (
	// taskType is the asynq type of every task of ours.
	taskType = "job"
	// never is asynq's own try counter put out of the way: ours decides.
	never = 1 << 30
	// taskTimeout ends a run whose handler hangs; the call's own limits are far below.
	taskTimeout = 2 * time.Hour
	// taskRetention keeps a finished task visible in asynqmon for a while. The record is what counts.
	taskRetention = 10 * time.Minute

	// MaxCall is the longest a policy may allow one call to take.
	MaxCall = taskTimeout - time.Minute
)

// Queue accepts jobs and answers questions about them. It is safe for concurrent use.
type Queue struct {
	*Store
	cfg     Config
	client  *asynq.Client
	inspect *asynq.Inspector
	watcher *Watcher
	log     *slog.Logger
}

// NewQueue returns a queue on a client. cfg is completed and validated. It does not dial.
func NewQueue(rdb redis.UniversalClient, cfg Config, watcher *Watcher, log *slog.Logger) (*Queue, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("tasks: %w", err)
	}
	store, err := NewStore(rdb, cfg.Keys)
	if err != nil {
		return nil, err
	}
	store.durable = durable{strict: cfg.Durability == Strict, replicas: cfg.Replicas}
	return &Queue{
		Store:   store,
		cfg:     cfg,
		client:  asynq.NewClientFromRedisClient(rdb),
		inspect: asynq.NewInspectorFromRedisClient(rdb),
		watcher: watcher,
		log:     log,
	}, nil
}

// Submission is a request to carry a body to an upstream. It has been validated.
type Submission struct {
	Kind        openai.Kind
	Upstream    string
	Priority    Priority // default Normal
	Model       string
	Request     []byte            // the upstream's body, byte for byte
	RunAt       time.Time         // not before; zero: now
	ExpiresIn   time.Duration     // counted from RunAt; 0: the configured
	Retention   time.Duration     // 0: the configured
	MaxAttempts int               // 0: the configured
	Metadata    map[string]string // shown with the job, never sent
	Key         string            // the client's idempotency key; empty: none
	Hash        string            // of all that the client sent, to tell a repeat from a reuse of Key
}

// Submit makes a submission durable and returns its job. With a Key that a job has already, it returns
// that job and created == false, or a *[KeyReuseError] if the hashes differ. A job that Redis has, but not
// as durably as was asked for, is an *[UnconfirmedError]: it may run, and to submit it again with its Key
// does no harm.
func (q *Queue) Submit(ctx context.Context, sub Submission) (job *Job, created bool, err error) {
	job = q.newJob(sub)
	created, taken, err := q.create(ctx, job, sub.Hash)
	_, unconfirmed := errors.AsType[*UnconfirmedError](err)
	switch {
	case err != nil && !unconfirmed:
		return nil, false, err
	case !created && taken != sub.Hash:
		return nil, false, &KeyReuseError{ID: job.ID}
	}
	if created {
		if err := q.enqueue(ctx, job.ID, job.Queue(), job.RunAt); err != nil {
			// The job is in Redis, so it is accepted: the reconciler gives it a task.
			q.log.LogAttrs(ctx, slog.LevelWarn, "enqueue left to the reconciler", slog.String("job_id", job.ID), slog.Any("error", err))
		}
	}
	switch {
	case unconfirmed:
		return nil, false, err
	case !created:
		job, err = q.Get(ctx, job.ID, Full)
		return job, false, err
	default:
		return job, true, nil
	}
}

func (q *Queue) newJob(sub Submission) *Job {
	now := time.Now().UTC()
	job := &Job{
		ID: newID(),
		Spec: Spec{
			Version: specVersion, Kind: sub.Kind, Upstream: sub.Upstream, Priority: sub.Priority,
			Model: sub.Model, MaxAttempts: sub.MaxAttempts, ExpiresIn: sub.ExpiresIn, Retention: sub.Retention, Metadata: sub.Metadata,
		},
		State: Queued, CreatedAt: now, UpdatedAt: now, RunAt: sub.RunAt, Request: sub.Request,
	}
	if sub.Key != "" {
		job.ID = idForKey("", sub.Key)
	}
	if job.Priority == "" {
		job.Priority = Normal
	}
	if job.MaxAttempts == 0 {
		job.MaxAttempts = q.cfg.MaxAttempts
	}
	if job.Retention == 0 {
		job.Retention = q.cfg.Retention
	}
	if job.ExpiresIn == 0 {
		job.ExpiresIn = q.cfg.ExpiresIn
	}
	job.ExpiresAt = later(now, sub.RunAt).Add(job.ExpiresIn)
	return job
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// enqueue gives a job its asynq task, whose ID is the job's. That the task exists already is success: after
// a stall of the network asynq reports a conflict with its own first try. But a task that has ended is in
// the way of a job that has not, and is replaced.
func (q *Queue) enqueue(ctx context.Context, id, queue string, runAt time.Time) error {
	t := asynq.NewTask(taskType, task{Version: specVersion, Job: id}.encode(),
		asynq.TaskID(id), asynq.Queue(queue), asynq.MaxRetry(never),
		asynq.Timeout(taskTimeout), asynq.Retention(taskRetention))
	var opts []asynq.Option
	if time.Until(runAt) > 0 {
		opts = append(opts, asynq.ProcessAt(ceilSecond(runAt)))
	}
	_, err := q.client.EnqueueContext(ctx, t, opts...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		info, infoErr := q.inspect.GetTaskInfo(queue, id)
		if infoErr != nil || (info.State != asynq.TaskStateCompleted && info.State != asynq.TaskStateArchived) {
			return nil //nolint:nilerr // the task is open, or has just gone, and then the reconciler sees to the job
		}
		if err = q.inspect.DeleteTask(queue, id); err == nil {
			_, err = q.client.EnqueueContext(ctx, t, opts...)
		}
	}
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("tasks: job %s: enqueue: %w", id, err)
	}
	return nil
}

// ceilSecond rounds up to a full second: asynq keeps times in whole seconds and rounds down, which would
// run a job up to one second early.
func ceilSecond(t time.Time) time.Time {
	if floor := t.Truncate(time.Second); !floor.Equal(t) {
		return floor.Add(time.Second)
	}
	return t
}

// pollInterval is how often a waiting client looks at the record for want of a message.
const pollInterval = 2 * time.Second

// Wait returns a job once it has ended, or as it stands when ctx ends; that is no error.
func (q *Queue) Wait(ctx context.Context, id string) (*Job, error) {
	if !ValidID(id) {
		return nil, ErrNotFound
	}
	changed, stop := q.watcher.watch(ctx, id)
	defer stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		job, err := q.look(ctx, id)
		if job != nil || err != nil {
			return job, err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// lookTimeout bounds one look of a waiting client at the record.
const lookTimeout = 2 * time.Second

// look returns a job that has ended, or any once ctx has: the answer to "as it stands" needs a look after
// the end of the wait.
func (q *Queue) look(ctx context.Context, id string) (*Job, error) {
	reading, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()
	state, err := q.state(reading, id)
	if err != nil {
		return nil, err
	}
	if !state.Terminal() && ctx.Err() == nil {
		return nil, nil
	}
	return q.Get(reading, id, Full)
}

// Cancel ends an open job. A running call is stopped; what it may have cost cannot be taken back. A job
// that has ended is a *[StateError].
func (q *Queue) Cancel(ctx context.Context, id string) (*Job, error) {
	job, err := q.Get(ctx, id, Summary)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	before, err := q.apply(ctx, id, move{
		want: "cancel", from: open, to: Canceled, due: now.Add(job.Retention),
		set: []any{"ended", micros(now)}, del: []string{"run_at", "why"},
	})
	if err != nil {
		return nil, err
	}
	if before != Running {
		// The task would find the job ended and go; without it the queue is shorter.
		_ = q.inspect.DeleteTask(job.Queue(), id) // it may be on its way to a worker, which is as good
	}
	return q.Get(ctx, id, Full)
}

var retryable = []State{Failed, Canceled, Expired}

// Retry puts an ended job without a result back in the queue, with all its attempts and time before it again.
// The ledger goes on. A job that is open or succeeded is a *[StateError].
func (q *Queue) Retry(ctx context.Context, id string) (*Job, error) {
	job, err := q.Get(ctx, id, Summary)
	if err != nil {
		return nil, err
	}
	if _, err := q.apply(ctx, id, revive(job)); err != nil {
		return nil, err
	}
	if err := q.enqueue(ctx, id, job.Queue(), time.Time{}); err != nil {
		q.log.LogAttrs(ctx, slog.LevelWarn, "enqueue left to the reconciler", slog.String("job_id", id), slog.Any("error", err))
	}
	return q.Get(ctx, id, Full)
}

func revive(job *Job) move {
	return move{
		want: "retry", from: retryable, to: Queued, due: time.Now().Add(job.ExpiresIn),
		set: []any{"attempts", 0, "retries", 0, "snoozes", 0, "lost", 0},
		del: []string{"ended", "error", "run_at", "why"},
	}
}

// Delete removes an ended job and its result. An open job is a *[StateError]: cancel it first.
func (q *Queue) Delete(ctx context.Context, id string) error {
	job, err := q.Get(ctx, id, Summary)
	if err != nil {
		return err
	}
	if err := q.remove(ctx, id); err != nil {
		return err
	}
	_ = q.inspect.DeleteTask(job.Queue(), id) // an ended task of a gone job; asynq drops it later anyway
	return nil
}

// Ping reports whether Redis answers.
func (q *Queue) Ping(ctx context.Context) error {
	if err := q.rdb.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("tasks: redis: %w", err)
	}
	return nil
}

// encodeFailure is how a failure stands in a record.
func encodeFailure(f *Failure) string {
	b, _ := json.Marshal(f) // plain fields cannot fail
	return string(b)
}
