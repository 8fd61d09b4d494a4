package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// Upstream makes one call: attempts and the waits between them. The error is a *[httpx.Error].
type Upstream interface {
	Do(ctx context.Context, call openai.Call) (*httpx.Response, error)
}

// Gate holds runs back while their upstream takes no calls.
type Gate interface {
	// Enter returns once a run may begin, with a function to call at its end, or fails when ctx ends.
	Enter(ctx context.Context) (leave func(), err error)
}

// Hooks are told what happens to jobs. Each may be nil, must not block, and is called once per event.
type Hooks struct {
	Attempt func(job *Job, a Attempt)            // an exchange with the upstream is over
	Wait    func(job *Job, s State, why string)  // a job entered Snoozed, Retrying, or Queued again
	End     func(job *Job, s State, code string) // a job ended; code is the failure's, "" without one
}

// ended tells the hook and the log.
func (hk Hooks) ended(ctx context.Context, log *slog.Logger, job *Job, d decision) {
	code := ""
	if d.failure != nil {
		code = d.failure.Code
	}
	if hk.End != nil {
		hk.End(job, d.state, code)
	}
	log.LogAttrs(ctx, slog.LevelInfo, "job ended", slog.String("job_id", job.ID), slog.String("kind", string(job.Kind)),
		slog.String("upstream", job.Upstream), slog.String("state", string(d.state)), slog.String("code", code),
		slog.Int("runs", job.Runs), slog.Int("snoozes", job.Snoozes), slog.Int64("age_ms", time.Since(job.CreatedAt).Milliseconds()))
}

// Handler runs the jobs of one upstream: it claims the job, looks whether its call still has to be made,
// makes it on a context of its own, writes the answer to the record, or to the outbox while Redis is away,
// and only then lets asynq forget the task.
type Handler struct {
	queue    *Queue
	upstream Upstream
	gate     Gate    // nil: none
	outbox   *Outbox // nil: none
	backoff  httpx.Backoff
	hooks    Hooks
	log      *slog.Logger
	slots    chan struct{}   // calls in flight; asynq's own count forgets a handler whose context ended
	closing  context.Context //nolint:containedctx // ends when the process goes away, and with it the waits for a place
	shut     context.CancelFunc
	calls    *Calls
	fleet    *Fleet
}

var _ asynq.Handler = (*Handler)(nil)

// HandlerConfig is what a [Handler] needs.
type HandlerConfig struct {
	Queue       *Queue
	Upstream    Upstream
	Gate        Gate    // nil: none
	Outbox      *Outbox // nil: an answer that Redis does not take waits in memory alone
	Concurrency int
	Backoff     httpx.Backoff // between the runs of a job
	Hooks       Hooks
	Calls       *Calls
	Fleet       *Fleet
	Log         *slog.Logger
}

// NewHandler returns a handler.
func NewHandler(cfg HandlerConfig) *Handler {
	h := &Handler{
		queue: cfg.Queue, upstream: cfg.Upstream, gate: cfg.Gate, outbox: cfg.Outbox, backoff: cfg.Backoff,
		hooks: cfg.Hooks, log: cfg.Log, slots: make(chan struct{}, cfg.Concurrency), calls: cfg.Calls, fleet: cfg.Fleet,
	}
	h.closing, h.shut = context.WithCancel(context.Background())
	return h
}

// DefaultBackoff is the wait between the runs of a job whose calls fail.
func DefaultBackoff() httpx.Backoff {
	return httpx.Backoff{Base: 2 * time.Second, Max: 5 * time.Minute, Multiplier: 2, Jitter: httpx.JitterEqual}
}

// comeBack is how a handler tells asynq to run the task again. Its text is shown in asynqmon.
type comeBack struct {
	delay  time.Duration
	state  State
	reason string
}

func (e *comeBack) Error() string { return fmt.Sprintf("%s: %s", e.state, e.reason) }

// endedBadly is how a handler tells asynq to archive the task, so that asynqmon shows it as failed and
// offers to run it. Its text marks the task as one that the job's end put there; see rerunByOperator.
type endedBadly struct{ state State }

const endedMark = "job ended: "

func (e *endedBadly) Error() string { return endedMark + string(e.state) }
func (e *endedBadly) Unwrap() error { return asynq.SkipRetry }

// ProcessTask is one run of a job.
func (h *Handler) ProcessTask(ctx context.Context, t *asynq.Task) (err error) {
	var ref task
	if err := json.Unmarshal(t.Payload(), &ref); err != nil || ref.Job == "" {
		h.log.LogAttrs(ctx, slog.LevelError, "task is not ours", slog.String("type", t.Type()))
		return fmt.Errorf("payload is not a job reference: %w", asynq.SkipRetry)
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-h.closing.Done():
		return &comeBack{state: Queued, reason: "worker_draining"}
	}

	leave, err := h.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	by, release := h.fleet.hold(ref.Job)
	defer release()
	job, err := h.claim(ctx, ref.Job, by)
	if job == nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			h.log.LogAttrs(ctx, slog.LevelError, "run panicked", slog.String("job_id", job.ID),
				slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = h.crashed(job)
		}
	}()
	return h.run(ctx, job)
}

// crashed ends a run that panicked. What it did before is not known, so the ledger says what it says of
// a worker that was lost.
func (h *Handler) crashed(job *Job) error {
	trace := Attempt{N: job.Attempts, Run: job.Runs, Class: httpx.Transient, Reason: panicReason, Unknown: true}
	d := decideCrash(job, h.queue.cfg.MaxCrashes, h.patience())
	return h.finish(job, d, []Attempt{trace}, 0)
}

func (h *Handler) patience() patience {
	return patience{backoff: h.backoff, now: time.Now(), rnd: rand.Float64}
}

// claim takes the job for this run. A claim without a reply may have been carried out, so it is made again
// until there is one: else the next run would take this one for lost. A nil job means that there is nothing
// to run; the error is what asynq should hear.
func (h *Handler) claim(ctx context.Context, id, by string) (*Job, error) {
	// asynq's context may be about to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), persistLimit)
	defer cancel()
	for wait := persistWait; ; wait = min(2*wait, persistMax) {
		job, back, err := h.claimOnce(ctx, id, by)
		if err == nil {
			return job, back
		}
		h.log.LogAttrs(ctx, slog.LevelError, "claim failed", slog.String("job_id", id), slog.Any("error", err))
		if replied(err) || ctx.Err() != nil || sleep(h.closing, wait) != nil {
			return nil, &comeBack{delay: time.Second, state: Queued, reason: "redis_unavailable"}
		}
	}
}

// claimOnce is one try to take the job. back is what asynq should hear if there is nothing to run, and err
// is Redis'.
func (h *Handler) claimOnce(ctx context.Context, id, by string) (job *Job, back, err error) {
	ctx, cancel := context.WithTimeout(ctx, persistStep)
	defer cancel()
	job, err = h.queue.claim(ctx, id, by, 0)
	if held, ok := errors.AsType[*heldError](err); ok {
		lost, doubt := h.fleet.lost(ctx, id, held.by)
		if !lost && doubt == nil {
			// asynq takes that run for dead, and is wrong: this one would buy the same answer again.
			return nil, &comeBack{delay: heldDelay, state: Running, reason: "another_run_has_it"}, nil
		}
		if err = doubt; lost {
			job, err = h.queue.claim(ctx, id, by, held.run)
		}
	}
	if ended, ok := errors.AsType[*StateError](err); ok {
		if !h.rerunByOperator(ctx, id, ended.State) {
			return nil, nil, nil // it ended in an earlier run whose acknowledgement was lost
		}
		job, err = h.queue.claim(ctx, id, by, 0)
	}
	if errors.Is(err, ErrNotFound) {
		return nil, nil, nil // deleted, or its retention is over: nobody waits for it
	}
	return job, nil, err
}

// replied reports whether an error is Redis' own.
func replied(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// heldDelay is when a job that another run seems to have is looked at again.
const heldDelay = 2 * time.Second

// rerunByOperator revives an ended job whose archived task someone ran again in asynqmon, and reports
// whether it did. A task that runs again because its acknowledgement was lost does not have the mark
// that archiving leaves on it.
func (h *Handler) rerunByOperator(ctx context.Context, id string, s State) bool {
	if s != Failed && s != Expired {
		return false
	}
	job, err := h.queue.Get(ctx, id, Summary)
	if err != nil {
		return false
	}
	info, err := h.queue.inspect.GetTaskInfo(job.Queue(), id)
	if err != nil || info.LastErr != (&endedBadly{s}).Error() {
		return false
	}
	_, err = h.queue.apply(ctx, id, revive(job))
	return err == nil
}

// enter waits at the gate, before the job is claimed. A job that is held there stays queued, snoozed or
// retrying to all the world: it can be canceled and can expire. And it holds its place, so that once the
// places are full nothing more is pulled from the queue: an upstream that is down for an hour costs Redis
// less than an idle one, and no job is pulled, refused and put back again and again.
func (h *Handler) enter(ctx context.Context) (leave func(), err error) {
	if h.gate == nil {
		return func() {}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.closing, cancel)()
	if leave, err = h.gate.Enter(ctx); err != nil {
		return nil, &comeBack{state: Queued, reason: "worker_draining"}
	}
	return leave, nil
}

// close keeps new runs from starting and waits for those in progress, by taking every slot. It is called
// once.
func (h *Handler) close() {
	h.shut()
	for range cap(h.slots) {
		h.slots <- struct{}{}
	}
}

func (h *Handler) run(ctx context.Context, job *Job) error {
	if h.outbox != nil {
		if l := h.outbox.find(ctx, job.ID); l != nil {
			l.Run = job.Runs // this run has the job now, and brings what an earlier one has bought
			return h.answered(ctx, job, l)
		}
	}
	if job.unreadable != nil && job.Version <= specVersion {
		h.log.LogAttrs(ctx, slog.LevelError, "job cannot be read by this worker", slog.String("job_id", job.ID), slog.Any("error", job.unreadable))
	}
	if d, decided := decideWithoutCall(job, h.queue.cfg.MaxCrashes, time.Now()); decided {
		return h.finish(job, d, nil, 0)
	}
	// The call does not end with asynq's lease: an answer that has been paid for is kept although Redis
	// was away for longer than that. The record's epoch keeps a second run's answer from being mixed up.
	callCtx, done := h.calls.begin(context.WithoutCancel(ctx), job.ID)
	defer done()
	resp, made, callErr := h.call(callCtx, job)
	entries, sent := attemptsOf(made, job)
	h.report(ctx, job, entries)
	if d := decide(job, callErr, sent, h.patience()); d.state != Succeeded {
		return h.finish(job, d, entries, sent)
	}
	return h.answered(ctx, job, &letter{
		Version: letterVersion, Job: job.ID, Kind: job.Kind, Upstream: job.Upstream, CreatedAt: job.CreatedAt,
		Retention: job.Retention, Snoozes: job.Snoozes, Run: job.Runs, Sent: sent, Ledger: entries,
		result: h.queue.codec.pack(job.ID, fieldResult, resp.Body),
	})
}

const (
	// lingerFor is how long a refused job may wait in its place for a refusal that will pass soon: a
	// breaker that is trying its upstream, a pool that is full for a moment. Through the queue it would
	// take longer, cost some fifteen Redis commands, and lose its turn.
	lingerFor = 5 * time.Second
	// lingerStep is the longest single wait that is worth it.
	lingerStep = 2 * time.Second
)

// call makes the job's call, and again after refusals that are short. It returns the attempts of all.
func (h *Handler) call(ctx context.Context, job *Job) (resp *httpx.Response, made []httpx.Attempt, callErr *httpx.Error) {
	giveUp := time.Now().Add(lingerFor)
	left := job.MaxAttempts - job.Attempts
	for {
		resp, err := h.upstream.Do(ctx, openai.Call{
			Kind: job.Kind, Body: job.Request, IdempotencyKey: job.ID, MaxAttempts: left,
		})
		if err == nil {
			return resp, append(made, resp.Attempts...), nil
		}
		if !errors.As(err, &callErr) {
			h.log.LogAttrs(ctx, slog.LevelError, "call could not be made", slog.String("job_id", job.ID), slog.Any("error", err))
			return nil, made, &httpx.Error{Class: httpx.Permanent, Reason: "internal_error"}
		}
		made = append(made, callErr.Attempts...)
		for _, a := range callErr.Attempts {
			if a.Sent {
				left--
			}
		}
		wait := lingerWait(callErr, rand.Float64)
		if wait == 0 || left <= 0 || time.Now().Add(wait).After(giveUp) {
			return nil, made, callErr
		}
		if sleep(ctx, wait) != nil {
			return nil, made, &httpx.Error{Class: httpx.Canceled, Reason: "canceled"}
		}
	}
}

// lingerWait is how long to wait in place before asking again; 0: not here.
func lingerWait(e *httpx.Error, rnd func() float64) time.Duration {
	if e.Class != httpx.Refused || e.Wait <= 0 || e.Wait > lingerStep {
		return 0
	}
	return e.Wait + time.Duration(rnd()*float64(e.Wait)/2) // they were refused together, and should not come back so
}

func (h *Handler) report(ctx context.Context, job *Job, entries []Attempt) {
	for _, a := range entries {
		if h.hooks.Attempt != nil {
			h.hooks.Attempt(job, a)
		}
		level := slog.LevelInfo
		if a.Class == httpx.OK {
			level = slog.LevelDebug
		}
		h.log.LogAttrs(ctx, level, "attempt", slog.String("job_id", job.ID), slog.String("upstream", job.Upstream),
			slog.Int("n", a.N), slog.Int("run", a.Run), slog.String("class", a.Class.String()), slog.String("reason", a.Reason),
			slog.Int("status", a.Status), slog.Int64("duration_ms", a.DurationMS), slog.Int64("wait_ms", a.WaitMS),
			slog.Bool("outcome_unknown", a.Unknown))
	}
}

const (
	persistStep  = 10 * time.Second       // one try to write to Redis
	persistWait  = 100 * time.Millisecond // before the second try; doubles
	persistMax   = 2 * time.Second
	persistLimit = 5 * time.Minute // then the run is given up
	// persistDrain is how long an outcome that nobody has paid for is kept by a worker that goes away.
	persistDrain = 3 * time.Second
	// outboxAfter is how long Redis may take before an answer goes to disk.
	outboxAfter = time.Second
)

// answered stores an answer, if not in Redis then on disk, if not there then in Redis when it is back: an
// answer has been paid for. The last holds its place in the process, so that the places bound the memory
// that answers take.
func (h *Handler) answered(ctx context.Context, job *Job, l *letter) error {
	lasting := context.WithoutCancel(ctx)
	err := h.persist(lasting, outboxAfter, job.ID, l.move(time.Now()))
	if h.outbox != nil && (!final(err) || taken(err)) {
		kept := h.outbox.put(ctx, l)
		if kept == nil {
			h.log.LogAttrs(ctx, slog.LevelWarn, "answer goes to disk", slog.String("job_id", job.ID), slog.Any("error", err))
			return &comeBack{delay: heldDelay, state: Running, reason: "answer_on_disk"}
		}
		h.log.LogAttrs(ctx, slog.LevelError, "answer cannot go to disk and waits in memory", slog.String("job_id", job.ID), slog.Any("error", kept))
	}
	if !final(err) {
		err = h.persist(lasting, persistLimit, job.ID, l.move(time.Now()))
	}
	if h.outbox != nil && final(err) && !taken(err) {
		h.outbox.forget(ctx, job.ID)
	}
	return h.concluded(ctx, job, decision{state: Succeeded}, err)
}

// finish writes any other decision to the record, while Redis is away again and again, and returns what
// asynq should hear. A worker that goes away does not wait for long: the job runs again.
func (h *Handler) finish(job *Job, d decision, entries []Attempt, sent int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(h.closing, func() { time.AfterFunc(persistDrain, cancel) })()
	err := h.persist(ctx, persistLimit, job.ID, h.moveFor(job, d, entries, sent))
	return h.concluded(ctx, job, d, err)
}

// concluded returns what asynq should hear after a move was tried.
func (h *Handler) concluded(ctx context.Context, job *Job, d decision, err error) error {
	var lost *StateError
	switch {
	case err == nil:
		return h.settled(ctx, job, d)
	case errors.As(err, &lost):
		return h.overtaken(ctx, job, lost.State)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	h.log.LogAttrs(ctx, slog.LevelError, "outcome of a run could not be stored", slog.String("job_id", job.ID),
		slog.String("state", string(d.state)), slog.Any("error", err))
	return &comeBack{delay: time.Second, state: Queued, reason: "redis_unavailable"}
}

// moveFor is the move of a run that has no answer.
func (h *Handler) moveFor(job *Job, d decision, entries []Attempt, sent int) move {
	m := move{want: "end", from: []State{Running}, to: d.state, run: job.Runs, attempts: sent, ledger: entries}
	now := time.Now()
	if d.state.Terminal() {
		m.end(now, job.Retention)
	} else {
		m.set = append(m.set, "run_at", micros(now.Add(d.delay)), "why", d.reason)
	}
	if d.crashed {
		m.set = append(m.set, "lost", job.lost+1, "crashes", job.Crashes+1)
	} else {
		m.set = append(m.set, "lost", 0)
	}
	switch d.state {
	case Failed, Expired:
		m.set = append(m.set, fieldError, h.queue.codec.packFailure(job.ID, d.failure))
	case Retrying:
		m.retries = 1
	case Snoozed:
		m.snoozes = 1
	default: // a job that is queued again has nothing to count
	}
	return m
}

// persist applies a move, again and again while Redis does not take it, for so long or until ctx ends.
func (h *Handler) persist(ctx context.Context, limit time.Duration, id string, m move) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := persistWait; ; wait = min(2*wait, persistMax) {
		step, cancel := context.WithTimeout(ctx, persistStep)
		_, err := h.queue.apply(step, id, m)
		cancel()
		if final(err) || sleep(ctx, wait) != nil {
			return err
		}
	}
}

// settled tells hooks, the log and asynq about a decision that is in the record.
func (h *Handler) settled(ctx context.Context, job *Job, d decision) error {
	if !d.state.Terminal() {
		if h.hooks.Wait != nil {
			h.hooks.Wait(job, d.state, d.reason)
		}
		h.log.LogAttrs(ctx, slog.LevelDebug, "job waits", slog.String("job_id", job.ID), slog.String("state", string(d.state)),
			slog.String("reason", d.reason), slog.Int64("delay_ms", d.delay.Milliseconds()))
		return &comeBack{delay: d.delay, state: d.state, reason: d.reason}
	}
	h.hooks.ended(ctx, h.log, job, d)
	if d.state == Succeeded {
		return nil
	}
	return &endedBadly{d.state}
}

// overtaken is the end of a run whose job was changed under it: canceled by request, or taken by another
// run. If the job is open again (canceled, then retried) its new task may be the one that this run
// holds, so that one must come back.
func (h *Handler) overtaken(ctx context.Context, job *Job, s State) error {
	h.log.LogAttrs(ctx, slog.LevelInfo, "run was overtaken", slog.String("job_id", job.ID), slog.Int("run", job.Runs), slog.String("state", string(s)))
	if s == Canceled && h.hooks.End != nil {
		h.hooks.End(job, Canceled, "")
	}
	if s == Queued {
		return &comeBack{state: Queued, reason: "retried_by_request"}
	}
	return nil
}

// sleep waits for d or until ctx ends.
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
