package tasks

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ferry-queue/ferry/internal/spool"
)

// Outbox keeps the answers that Redis does not take on disk, and delivers them when it does again: its
// own, those of the process before it, and those of dead processes on the same machine.
//
// An answer stays until its job has one or has ended otherwise. Until then this process has the job, in the
// eyes of the fleet, so that nobody makes the call again. Should another run have it all the same, the answer
// is refused; but that run may come to nothing, and then the answer is still good.
type Outbox struct {
	store *Store
	spool *spool.Spool
	fleet *Fleet
	hooks Hooks
	log   *slog.Logger
	wake  chan struct{} // has a token when there is something new to deliver

	delivered, refused, failed atomic.Int64

	mu       sync.Mutex        // guards releases
	releases map[string]func() // by job whose answer was put here: tells the fleet that it may be run again
}

// OutboxConfig is what an [Outbox] needs.
type OutboxConfig struct {
	Queue *Queue
	Spool *spool.Spool
	Fleet *Fleet
	Hooks Hooks // End is called for each job that an answer ends
	Log   *slog.Logger
}

// NewOutbox returns an outbox.
func NewOutbox(cfg OutboxConfig) *Outbox {
	return &Outbox{
		store: cfg.Queue.Store, spool: cfg.Spool, fleet: cfg.Fleet, hooks: cfg.Hooks, log: cfg.Log,
		wake: make(chan struct{}, 1), releases: make(map[string]func()),
	}
}

// OutboxStats are figures of an [Outbox].
type OutboxStats struct {
	Entries   int   // answers on disk now
	Bytes     int64 // that they take
	Delivered int64 // answers that ended their jobs
	Refused   int64 // answers that came too late: their jobs had ended, or were gone
	Failed    int64 // answers that the disk did not take
}

// Stats returns the figures.
func (o *Outbox) Stats() OutboxStats {
	entries, size := o.spool.Usage()
	return OutboxStats{
		Entries: entries, Bytes: size,
		Delivered: o.delivered.Load(), Refused: o.refused.Load(), Failed: o.failed.Load(),
	}
}

// Close gives what is left to the next process that looks. The outbox must not run any more.
func (o *Outbox) Close() error { return o.spool.Close() }

const (
	// adoptEvery is how often dead processes are looked for. It is less than the time after which their
	// jobs run again.
	adoptEvery = 5 * time.Second
	// deliverWait is the wait before another try while Redis is away; doubles.
	deliverWait = 100 * time.Millisecond
	deliverMax  = time.Second
	// partTries is after how many failures a part of the records is left for the next round. It is more
	// than one, so that an answer that Redis does not take for its own sake does not keep the others back.
	partTries = 3
)

// Run delivers, and looks for the answers of dead processes, until ctx ends.
func (o *Outbox) Run(ctx context.Context) error {
	look := time.NewTicker(adoptEvery)
	defer look.Stop()
	for wait := deliverWait; ; {
		var retry <-chan time.Time
		wake := o.wake
		if err := o.Deliver(ctx); err != nil {
			retry, wake = time.After(wait), nil // what is new will not fare better
			wait = min(2*wait, deliverMax)
		} else {
			wait = deliverWait
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			o.adopt(ctx)
		case <-retry:
		case <-wake:
		}
	}
}

func (o *Outbox) adopt(ctx context.Context) {
	n, err := o.spool.Adopt()
	if n > 0 {
		o.log.LogAttrs(ctx, slog.LevelInfo, "answers of a dead process taken over", slog.Int("count", n))
	}
	if err != nil {
		o.log.LogAttrs(ctx, slog.LevelWarn, "answers of a dead process cannot be taken over", slog.Any("error", err))
	}
}

// Deliver tries once for each answer, the oldest first. The error is why the first one could not be
// delivered that should have been.
func (o *Outbox) Deliver(ctx context.Context) (first error) {
	failures := make(map[int]int) // by part of the records: on a cluster the others may be well
	for _, e := range o.spool.Entries() {
		part := shard(e.Key)
		if failures[part] == partTries {
			continue
		}
		if err := o.deliver(ctx, e); err != nil {
			failures[part]++
			first = cmp.Or(first, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return first
}

// deliver is one try for one answer. The error is Redis'.
func (o *Outbox) deliver(ctx context.Context, e spool.Entry) error {
	l := o.read(ctx, e)
	if l == nil {
		return nil
	}
	step, cancel := context.WithTimeout(ctx, persistStep)
	defer cancel()
	_, err := o.store.apply(step, l.Job, l.move(time.Now()))
	switch {
	case err == nil:
		o.delivered.Add(1)
		o.remove(ctx, e)
		o.hooks.ended(ctx, o.log, l.job(), decision{state: Succeeded})
	case taken(err):
	case final(err):
		o.refused.Add(1)
		o.remove(ctx, e)
		o.log.LogAttrs(ctx, slog.LevelInfo, "answer came too late", slog.String("job_id", l.Job), slog.Int("run", l.Run), slog.Any("reason", err))
	default:
		return err
	}
	return nil
}

// read returns nil for an answer that cannot be delivered now. Its job may then be run again.
func (o *Outbox) read(ctx context.Context, e spool.Entry) *letter {
	l, err := o.open(e)
	switch {
	case err == nil:
		return l
	case errors.Is(err, errNewerLetter): // a newer worker will come by
	case errors.Is(err, spool.ErrDamaged): // the spool has said so
	default:
		o.log.LogAttrs(ctx, slog.LevelError, "answer cannot be read", slog.String("job_id", e.Key), slog.Any("error", err))
	}
	o.release(e.Key)
	return nil
}

// open reads an answer's file. One that is no answer is set aside.
func (o *Outbox) open(e spool.Entry) (*letter, error) {
	file, err := o.spool.Read(e.Name)
	if err != nil {
		return nil, err
	}
	l, err := decodeLetter(file)
	if err != nil && !errors.Is(err, errNewerLetter) {
		o.spool.SetAside(e.Name, err)
	}
	return l, err
}

// put makes an answer durable, in the place of any that the job has here.
func (o *Outbox) put(ctx context.Context, l *letter) error {
	file, err := l.encode()
	if err != nil {
		return err
	}
	before := o.spool.Under(l.Job)
	if err := o.spool.Put(l.Job, file); err != nil {
		o.failed.Add(1)
		return err
	}
	o.hold(l.Job)
	for _, e := range before {
		o.remove(ctx, e)
	}
	select {
	case o.wake <- struct{}{}:
	default: // it has been told already
	}
	return nil
}

// find returns the answer that lies here for a job, or nil.
func (o *Outbox) find(ctx context.Context, id string) *letter {
	for _, e := range o.spool.Under(id) {
		if l := o.read(ctx, e); l != nil {
			return l
		}
	}
	return nil
}

// forget removes the answers of a job that has ended.
func (o *Outbox) forget(ctx context.Context, id string) {
	for _, e := range o.spool.Under(id) {
		o.remove(ctx, e)
	}
}

func (o *Outbox) remove(ctx context.Context, e spool.Entry) {
	if err := o.spool.Remove(e.Name); err != nil {
		o.log.LogAttrs(ctx, slog.LevelError, "answer cannot be removed", slog.String("job_id", e.Key), slog.Any("error", err))
		return
	}
	if len(o.spool.Under(e.Key)) == 0 {
		o.release(e.Key)
	}
}

// hold tells the fleet that this process has the job, in the place of the run that leaves its answer here.
func (o *Outbox) hold(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.releases[id] == nil {
		_, o.releases[id] = o.fleet.hold(id)
	}
}

func (o *Outbox) release(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if release := o.releases[id]; release != nil {
		release()
		delete(o.releases, id)
	}
}

// final reports whether the error of a move is the record's last word, and not Redis' trouble.
func final(err error) bool {
	var refused *StateError
	return err == nil || errors.Is(err, ErrNotFound) || errors.As(err, &refused)
}

// taken reports whether a move was refused because another run has the job.
func taken(err error) bool {
	var refused *StateError
	return errors.As(err, &refused) && refused.State == Running
}
