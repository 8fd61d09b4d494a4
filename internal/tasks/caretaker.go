package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	leases    map[string]map[string]lease // by queue and task, while this one leads
	next      cursor                      // where the reconciler goes on
}

// lease is when a task's lease ends, by the clock of the worker that has it, and how many rounds have seen
// it so.
type lease struct {
	ends   float64
	rounds int
}

// cursor walks over the open jobs of all parts, a batch at a time.
type cursor struct {
	part, state int
	offset      int64
}

const (
	careEvery = time.Second
	// leaderFor is how long a caretaker that died keeps the others waiting.
	leaderFor = 3 * time.Second
	// deadRounds is how many rounds, and so seconds, may see a lease that is not renewed. asynq renews each
	// 5 s, so this one has missed two.
	deadRounds = 12
	reapBatch  = 500
	sweepBatch = 200
	// A running job whose time is over is looked at again after this.
	sweepAgain = 30 * time.Second
	// reconcileBatch jobs are looked at each reconcileEvery; one younger than reconcileAge is left to
	// the request that is making it.
	reconcileBatch = 1000
	reconcileEvery = 5 * time.Second
	reconcileAge   = 15 * time.Second
	// archiveKeep is how many failed tasks asynqmon can show of a queue.
	archiveKeep  = 4000
	archiveBatch = 1000
)

const leaderKey = "ferry:caretaker"

// leadScript takes or keeps the lead.
//
//	KEYS[1] lead  ARGV[1] name  [2] for this many ms
//	result  1 if the name has the lead
//
// DEL comes first because a full Redis does not refuse it: what makes room again is led too.
var leadScript = redis.NewScript(`
local who = redis.call("GET", KEYS[1])
if who and who ~= ARGV[1] then return 0 end
redis.call("DEL", KEYS[1])
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
		return
	}
	if lead == 0 {
		c.leases = nil
		return
	}
	steps := []func(context.Context, time.Time) error{c.sweep, c.reap}
	if reconcile {
		steps = append(steps, c.reconcile, c.prune)
	}
	for _, step := range steps {
		if err := step(ctx, now); err != nil && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "caretaker", slog.Any("error", err))
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

// reap puts the tasks of dead workers back to the head of their queues. A lease's end is a time by its
// worker's clock, which may be wrong, so it is only looked at whether it moves. Rounds that an outage of
// Redis has made impossible do not count, since no lease can be renewed then either. A lease that is
// judged wrongly all the same costs no call: see [Fleet].
func (c *Caretaker) reap(ctx context.Context, _ time.Time) error {
	if c.leases == nil {
		c.leases = make(map[string]map[string]lease)
	}
	for _, queue := range c.queues() {
		held, err := c.queue.rdb.ZRangeWithScores(ctx, asynqLease(queue), 0, -1).Result()
		if err != nil {
			return fmt.Errorf("reap %s: %w", queue, err)
		}
		var dead []any
		c.leases[queue], dead = judgeLeases(c.leases[queue], held)
		count := 0
		for batch := range slices.Chunk(dead, 2*reapBatch) {
			keys := []string{asynqLease(queue), asynqActive(queue), asynqPending(queue)}
			ids, err := reapScript.Run(ctx, c.queue.rdb, keys, append([]any{asynqTaskPrefix(queue)}, batch...)...).StringSlice()
			if err != nil {
				return fmt.Errorf("reap %s: %w", queue, err)
			}
			count += len(ids)
		}
		if count > 0 {
			c.log.LogAttrs(ctx, slog.LevelWarn, "jobs of a dead worker put back", slog.String("queue", queue), slog.Int("count", count))
		}
	}
	return nil
}

// judgeLeases returns the leases as they are now seen, and those that nobody renews as task, end, ...
func judgeLeases(before map[string]lease, held []redis.Z) (seen map[string]lease, dead []any) {
	seen = make(map[string]lease, len(held))
	for _, z := range held {
		id := text(z.Member)
		rounds := 0
		if was, ok := before[id]; ok && was.ends == z.Score {
			rounds = was.rounds + 1
		}
		seen[id] = lease{ends: z.Score, rounds: rounds}
		if rounds >= deadRounds {
			dead = append(dead, id, z.Score)
		}
	}
	return seen, dead
}

// prune keeps asynq's archives short.
func (c *Caretaker) prune(ctx context.Context, _ time.Time) error {
	for _, queue := range c.queues() {
		for {
			keys := []string{asynqArchived(queue)}
			n, err := pruneScript.Run(ctx, c.queue.rdb, keys, asynqTaskPrefix(queue), archiveKeep, archiveBatch).Int()
			if err != nil {
				return fmt.Errorf("prune %s: %w", queue, err)
			}
			if n < archiveBatch {
				break
			}
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
		if err := c.reconcileAll(ctx, ids, now); err != nil {
			return fmt.Errorf("reconcile: %w", err)
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

// reconcileAll asks for all records in one round trip and for all their tasks in another, since nearly
// every job has its task.
func (c *Caretaker) reconcileAll(ctx context.Context, ids []string, now time.Time) error {
	records := make([]*redis.SliceCmd, len(ids))
	_, err := c.queue.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			records[i] = p.HMGet(ctx, jobKey(id), "state", "updated", "queue", "run_at")
		}
		return nil
	})
	if err != nil {
		return err
	}
	type suspect struct {
		id, queue string
		runAt     time.Time
		task      *redis.StringCmd
	}
	var suspects []suspect
	_, err = c.queue.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			had := records[i].Val()
			if len(had) < 4 || State(text(had[0])).Terminal() || text(had[2]) == "" || now.Sub(moment(text(had[1]))) < reconcileAge {
				continue // gone, ended or just touched: not lost
			}
			queue := text(had[2])
			suspects = append(suspects, suspect{id, queue, moment(text(had[3])), p.HGet(ctx, asynqTaskPrefix(queue)+id, "state")})
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // nil: a task that is missing, which is what is looked for
		return err
	}
	for _, s := range suspects {
		if openTask(s.task.Val()) {
			continue
		}
		if err := c.queue.enqueue(ctx, s.id, s.queue, s.runAt); err != nil {
			return err
		}
	}
	return nil
}
