package tasks

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// Caretaker does, for the whole fleet, what no single job can do for itself: it puts the jobs of dead
// workers back, expires and deletes jobs whose time is over, and gives a task to a job that asynq has
// lost. Every worker runs one; one of them at a time works.
type Caretaker struct {
	queue     *Queue
	upstreams []string
	held      func(upstream string) (reason string)
	log       *slog.Logger
	name      string
	healthy   time.Time // since when Redis has answered without a gap; zero: it does not
	next      cursor    // where the reconciler goes on
}

// cursor walks over the open jobs of all parts, a batch at a time.
type cursor struct {
	part, state int
	offset      int64
}

const (
	careEvery = time.Second
	// leaderFor is how long a caretaker that died keeps the others waiting.
	leaderFor = 5 * time.Second
	// deadLease: asynq renews its 30 s leases each 5 s, so one with less than this left has missed two
	// renewals.
	deadLease = 18 * time.Second
	// trustAfter is how long Redis must have been seen healthy before leases are judged: after an outage
	// all of them look old.
	trustAfter = 15 * time.Second
	reapBatch  = 500
	sweepBatch = 200
	// A running job whose time is over is looked at again after this.
	sweepAgain = 30 * time.Second
	// reconcileBatch jobs are looked at each reconcileEvery; one younger than reconcileAge is left to
	// the request that is making it.
	reconcileBatch = 200
	reconcileEvery = 5 * time.Second
	reconcileAge   = 15 * time.Second
)

const leaderKey = "ferry:caretaker"

// leadScript takes or keeps the lead.
//
//	KEYS[1] lead  ARGV[1] name  [2] for this many ms
//	result  1 if the name has the lead
var leadScript = redis.NewScript(`
local who = redis.call("GET", KEYS[1])
if who and who ~= ARGV[1] then return 0 end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
`)

// resignScript gives the lead up. KEYS[1] lead, ARGV[1] name.
var resignScript = redis.NewScript(`
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end
return 0
`)

// NewCaretaker returns a caretaker for the queues of the named upstreams. held says why the jobs of one are
// held back now, in plain words such as "breaker_open", or "" if they are not.
func NewCaretaker(queue *Queue, upstreams []string, held func(upstream string) (reason string), log *slog.Logger) *Caretaker {
	return &Caretaker{queue: queue, upstreams: upstreams, held: held, log: log, name: uuid.NewString()}
}

// Run works until ctx ends.
func (c *Caretaker) Run(ctx context.Context) error {
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	lastReconcile := time.Now()
	for {
		select {
		case <-ctx.Done():
			c.resign()
			return nil
		case now := <-tick.C:
			reconcile := now.Sub(lastReconcile) >= reconcileEvery
			if reconcile {
				lastReconcile = now
			}
			c.round(ctx, now, reconcile)
		}
	}
}

func (c *Caretaker) resign() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = resignScript.Run(ctx, c.queue.rdb, []string{leaderKey}, c.name).Err() // else it runs out by itself
}

// round does what is due once. An error ends the round: Redis is away, and the next round sees.
func (c *Caretaker) round(ctx context.Context, now time.Time, reconcile bool) {
	ctx, cancel := context.WithTimeout(ctx, leaderFor)
	defer cancel()
	lead, err := leadScript.Run(ctx, c.queue.rdb, []string{leaderKey}, c.name, leaderFor.Milliseconds()).Int()
	if err != nil {
		c.healthy = time.Time{}
		return
	}
	if c.healthy.IsZero() {
		c.healthy = now
	}
	if lead == 0 {
		return
	}
	steps := []func(context.Context, time.Time) error{c.sweep}
	if now.Sub(c.healthy) >= trustAfter {
		steps = append(steps, c.reap)
	}
	if reconcile {
		steps = append(steps, c.reconcile)
	}
	for _, step := range steps {
		if err := step(ctx, now); err != nil && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "caretaker", slog.Any("error", err))
			c.healthy = time.Time{}
			return
		}
	}
}

// sweep expires open jobs and deletes ended ones whose time has come.
func (c *Caretaker) sweep(ctx context.Context, now time.Time) error {
	plain := encodeFailure(expiredFailure(""))
	// Reasons are from a closed set of plain words, so they can be put into JSON as they are.
	before, after, _ := strings.Cut(encodeFailure(expiredFailure("REASON")), "REASON")
	args := []any{micros(now), sweepBatch, sweepAgain.Microseconds(), plain, before, after}
	for _, upstream := range c.upstreams {
		if reason := c.held(upstream); reason != "" {
			args = append(args, upstream, reason)
		}
	}
	for part := range shards {
		keys := []string{jobPrefix(part), dueKey(part), statePrefix(part)}
		for {
			reply, err := sweepScript.Run(ctx, c.queue.rdb, keys, args...).Slice()
			if err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
			for _, id := range reply[1:] {
				c.log.LogAttrs(ctx, slog.LevelInfo, "job ended", slog.String("job_id", text(id)), slog.String("state", string(Expired)))
			}
			if due, _ := reply[0].(int64); due < sweepBatch {
				break
			}
		}
	}
	return nil
}

// reap puts the tasks of dead workers back to the head of their queues.
func (c *Caretaker) reap(ctx context.Context, now time.Time) error {
	for _, queue := range c.queues() {
		keys := []string{asynqLease(queue), asynqActive(queue), asynqPending(queue)}
		ids, err := reapScript.Run(ctx, c.queue.rdb, keys, now.Add(deadLease).Unix(), asynqTaskPrefix(queue), reapBatch).StringSlice()
		if err != nil {
			return fmt.Errorf("reap %s: %w", queue, err)
		}
		if len(ids) > 0 {
			c.log.LogAttrs(ctx, slog.LevelWarn, "jobs of a dead worker put back", slog.String("queue", queue), slog.Int("count", len(ids)))
		}
	}
	return nil
}

func (c *Caretaker) queues() (names []string) {
	for _, upstream := range c.upstreams {
		names = append(names, queuesOf(upstream)...)
	}
	return names
}

func queuesOf(upstream string) (names []string) {
	for _, p := range Priorities() {
		names = append(names, QueueName(upstream, p))
	}
	return names
}

// reconcile looks at a batch of open jobs and gives each a task, which does nothing where there is one.
func (c *Caretaker) reconcile(ctx context.Context, now time.Time) error {
	left := int64(reconcileBatch)
	for range shards * len(open) {
		ids, err := c.queue.rdb.ZRangeArgs(ctx, redis.ZRangeArgs{
			Key: stateKey(c.next.part, open[c.next.state]), ByScore: true,
			Start: "-inf", Stop: strconv.FormatInt(micros(now.Add(-reconcileAge)), 10),
			Offset: c.next.offset, Count: left,
		}).Result()
		if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
		for _, id := range ids {
			if err := c.reconcileOne(ctx, id, now); err != nil {
				return fmt.Errorf("reconcile: %w", err)
			}
		}
		left -= int64(len(ids))
		if left == 0 {
			c.next.offset += int64(len(ids))
			return nil
		}
		c.next.advance()
	}
	return nil
}

func (at *cursor) advance() {
	at.offset = 0
	if at.state++; at.state == len(open) {
		at.state = 0
		at.part = (at.part + 1) % shards
	}
}

func (c *Caretaker) reconcileOne(ctx context.Context, id string, now time.Time) error {
	job, err := c.queue.Get(ctx, id, Summary)
	if err != nil || job.State.Terminal() || now.Sub(job.UpdatedAt) < reconcileAge {
		return nil //nolint:nilerr // gone, ended or just touched: not lost; a Redis that is away shows in the next command
	}
	return c.queue.enqueue(ctx, id, job.Queue(), job.RunAt)
}
