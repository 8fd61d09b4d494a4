package tasks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// Fleet knows which workers share a Redis, which of them are alive, and which jobs each has. It keeps a
// job that is being run from being run by a second worker, whatever asynq thinks of the first.
//
// The idea: each worker counts up a number, its beat, and publishes with it the jobs it has. A worker is
// dead when this process has seen the same beat so many times over. Clocks are not compared, so one that
// is wrong takes nobody for dead. And what is counted is looks, not time: an outage of Redis, which stops
// every beat, stops every look too, and one outage after another only delays the verdict.
type Fleet struct {
	rdb  redis.UniversalClient
	name string

	mu     sync.Mutex          // guards what follows
	beat   int64               // the last one published, or being published
	runs   int64               // begun by this process
	jobs   map[string]int      // this process has, by how many runs
	looks  int64               // that Redis has answered
	others map[string]sighting // by worker, this one included
}

// sighting is a worker's beat and the look that was the first to see it.
type sighting struct{ beat, look int64 }

const (
	beatEvery = time.Second
	// beatLimit bounds one look.
	beatLimit = 2 * time.Second
	// deadLooks is how many looks must see no other beat. The verdict is then there before the first task
	// of a dead worker is: one that came too early would go behind all that wait. A worker that is only
	// slow is not run over by it, for its tasks stay with it until deadRounds.
	deadLooks = 6
	// forgetLooks is after how many a dead worker's beat is removed: ten minutes.
	forgetLooks = 600
)

// The keys of the fleet have a hash tag in common, so that one transaction writes both:
//
//	ferry:{workers}:beats  hash  by worker, its beat
//	ferry:{workers}:jobs   hash  by worker, the beat and the IDs of the jobs it had then
const (
	beatsKey = "ferry:{workers}:beats"
	jobsKey  = "ferry:{workers}:jobs"
)

// NewFleet returns a fleet in which this process is a new worker. It does not dial.
func NewFleet(rdb redis.UniversalClient) *Fleet {
	return &Fleet{rdb: rdb, name: uuid.NewString(), jobs: make(map[string]int), others: make(map[string]sighting)}
}

// Run publishes and watches until ctx ends. It must outlive every run of a job: without beats the others
// take this worker's jobs.
func (f *Fleet) Run(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	f.round(ctx)
	for {
		select {
		case <-ctx.Done():
			f.leave()
			return nil
		case <-tick.C:
			f.round(ctx)
		}
	}
}

// leave tells the others that this worker has no job any more.
func (f *Fleet) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.forget(ctx, f.name) // else they see it
}

func (f *Fleet) forget(ctx context.Context, names ...string) error {
	_, err := f.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HDel(ctx, beatsKey, names...)
		p.HDel(ctx, jobsKey, names...)
		return nil
	})
	return err
}

// round beats once and looks at the others.
func (f *Fleet) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, beatLimit)
	defer cancel()
	beats, err := f.publish(ctx)
	if err != nil {
		return
	}
	if gone := f.saw(beats); len(gone) > 0 {
		_ = f.forget(ctx, gone...) // the next round tries again
	}
}

// publish writes this worker's beat and jobs, and returns every worker's beat.
func (f *Fleet) publish(ctx context.Context) (map[string]string, error) {
	beat, ids := f.mine()
	var beats *redis.MapStringStringCmd
	_, err := f.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, beatsKey, f.name, beat)
		p.HSet(ctx, jobsKey, f.name, encodeHeld(beat, ids))
		beats = p.HGetAll(ctx, beatsKey)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tasks: fleet: %w", err)
	}
	return beats.Val(), nil
}

// mine begins a beat: a job that is held before this is in the beat's list.
func (f *Fleet) mine() (beat int64, ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beat++
	ids = make([]string, 0, len(f.jobs))
	for id := range f.jobs {
		ids = append(ids, id)
	}
	return f.beat, ids
}

// saw notes what a look has shown, and returns the workers that nobody need remember.
func (f *Fleet) saw(beats map[string]string) (gone []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	for name, text := range beats {
		beat, _ := strconv.ParseInt(text, 10, 64) // what is not a number does not move
		if was, ok := f.others[name]; !ok || was.beat != beat {
			f.others[name] = sighting{beat: beat, look: f.looks}
		} else if f.looks-was.look >= forgetLooks {
			gone = append(gone, name)
			delete(f.others, name)
		}
	}
	return gone
}

// hold notes that a run of this process has a job, or is about to claim it, and returns by what name the
// record shall know the run, with a function to call when it has ended.
func (f *Fleet) hold(id string) (by string, release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs[id]++
	f.runs++
	return holder{worker: f.name, beat: f.beat, run: f.runs}.String(), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.jobs[id]--; f.jobs[id] == 0 {
			delete(f.jobs, id)
		}
	}
}

// lost reports whether the run that has a job by the record is gone: its worker is dead, or has beaten
// since without having the job. A run that may be alive is not lost. The caller holds the job itself.
func (f *Fleet) lost(ctx context.Context, id, by string) (bool, error) {
	h, ok := parseHolder(by)
	if !ok {
		return true, nil // claimed by a version that did not say
	}
	if gone, sure := f.judge(id, h); sure {
		return gone, nil
	}
	text, err := f.rdb.HGet(ctx, jobsKey, h.worker).Result()
	if err != nil && !errors.Is(err, redis.Nil) { // nil: it has just left, which proves nothing of this run
		return false, fmt.Errorf("tasks: fleet: %w", err)
	}
	beat, ids := decodeHeld(text)
	return beat > h.beat && !slices.Contains(ids, id), nil
}

// judge says what can be said of a run without asking Redis.
func (f *Fleet) judge(id string, h holder) (gone, sure bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.worker == f.name {
		return f.jobs[id] <= 1, true // but for the caller nobody here has it
	}
	last, known := f.others[h.worker] // one never seen counts from the first look
	if f.looks-last.look >= deadLooks {
		return true, true
	}
	return false, !known || last.beat <= h.beat
}

// holder is how a record names the run that has the job.
type holder struct {
	worker string
	beat   int64 // of the worker when the run began
	run    int64 // tells the runs of a worker apart
}

func (h holder) String() string { return fmt.Sprintf("%s/%d/%d", h.worker, h.beat, h.run) }

func parseHolder(text string) (h holder, ok bool) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[0] == "" {
		return holder{}, false
	}
	var errBeat, errRun error
	h.worker = parts[0]
	h.beat, errBeat = strconv.ParseInt(parts[1], 10, 64)
	h.run, errRun = strconv.ParseInt(parts[2], 10, 64)
	return h, errBeat == nil && errRun == nil
}

func encodeHeld(beat int64, ids []string) string {
	return strconv.FormatInt(beat, 10) + " " + strings.Join(ids, ",")
}

func decodeHeld(text string) (beat int64, ids []string) {
	number, list, _ := strings.Cut(text, " ")
	beat, _ = strconv.ParseInt(number, 10, 64) // a list of no beat proves nothing
	return beat, strings.Split(list, ",")
}
