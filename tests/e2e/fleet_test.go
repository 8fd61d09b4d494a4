package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/client"
)

// fleetSize is how many workers the tests of the breaker run: with two, "another" and "all others" are the same.
const fleetSize = 3

// change is one "breaker changed" line of a worker's log.
type change struct {
	Time     time.Time `json:"time"`
	Msg      string    `json:"msg"`
	Upstream string    `json:"upstream"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Reason   string    `json:"reason"`
	Calls    int64     `json:"calls"`
	Failures int64     `json:"failures"`
}

// changes are the changes of breakers that a process has logged since a moment, in order.
func (p *process) changes(since time.Time) (all []change) {
	for line := range strings.Lines(p.output()) {
		if !strings.Contains(line, `"msg":"breaker changed"`) {
			continue
		}
		var c change
		if err := json.Unmarshal([]byte(line), &c); err == nil && c.Time.After(since) {
			all = append(all, c)
		}
	}
	return all
}

// firstChange is the first change to a state since a moment, and whether there was one.
func (p *process) firstChange(since time.Time, to string) (change, bool) {
	all := p.changes(since)
	i := slices.IndexFunc(all, func(c change) bool { return c.To == to })
	if i < 0 {
		return change{}, false
	}
	return all[i], true
}

// awaitChange waits until every worker has logged a change to a state since a moment, and returns when each did.
func (s *system) awaitChange(since time.Time, to string, limit time.Duration) []time.Time {
	s.t.Helper()
	at := make([]time.Time, len(s.workers))
	until(s.t, limit, "the breaker is "+to+" at every worker", func() bool {
		for i, w := range s.workers {
			c, ok := w.firstChange(since, to)
			if at[i] = c.Time; !ok {
				return false
			}
		}
		return true
	})
	return at
}

// open makes the upstream fail until every worker refuses to call it.
func (s *system) open() {
	s.t.Helper()
	began := time.Now()
	s.upstream.Down()
	s.submitAll(2*openAfter, func(int) client.SubmitRequest { return chat("opens the breaker", "") })
	s.awaitChange(began, "open", 10*time.Second)
}

// openAfter is the default of breaker.hard_failures.
const openAfter = 20

// kill ends a worker as a crash does. It is not coming back.
func (s *system) kill(w *process) {
	s.t.Helper()
	w.kill(s.t)
	s.workers = slices.DeleteFunc(s.workers, func(o *process) bool { return o == w })
}

// arrivals is how often the upstream was called, those calls included that found it down.
func (s *system) arrivals() int64 { return s.upstream.Requests() + s.upstream.Refused() }

// store returns a client of a Redis.
func store(t *testing.T, addr string) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = rdb.Close() }) // nothing is left to lose
	return rdb
}

// commands is how many commands a Redis has run so far, those of scripts included.
func commands(t *testing.T, rdb *redis.Client) int64 {
	t.Helper()
	info, err := rdb.Info(t.Context(), "stats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "total_commands_processed:")
	count, _, _ := strings.Cut(rest, "\r\n")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// commandsPerSecond is a Redis' load over a time.
func commandsPerSecond(t *testing.T, rdb *redis.Client, over time.Duration) float64 {
	t.Helper()
	before, began := commands(t, rdb), time.Now()
	pass(t, over)
	return float64(commands(t, rdb)-before) / time.Since(began).Seconds()
}

// sampler notes a count that grows, again and again.
type sampler struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex // guards samples
	samples []sample
}

type sample struct {
	at time.Time
	n  int64
}

const sampleEvery = 20 * time.Millisecond

func startSampler(t *testing.T, count func() int64) *sampler {
	ctx, cancel := context.WithCancel(t.Context())
	s := &sampler{stop: cancel}
	s.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			s.mu.Lock()
			s.samples = append(s.samples, sample{time.Now(), count()})
			s.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(s.end)
	return s
}

// end stops the sampler; what it has noted stays.
func (s *sampler) end() {
	s.stop()
	s.done.Wait()
}

// at is what the count was at a moment.
func (s *sampler) at(moment time.Time) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(s.samples, moment, func(a sample, b time.Time) int { return a.at.Compare(b) })
	if len(s.samples) == 0 {
		return 0
	}
	return s.samples[min(i, len(s.samples)-1)].n
}

// between is how much the count grew.
func (s *sampler) between(from, to time.Time) int64 { return s.at(to) - s.at(from) }

// grown is the first moment since one at which the count had grown.
func (s *sampler) grown(since time.Time) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	base := int64(-1)
	for _, now := range s.samples {
		switch {
		case base < 0 || now.at.Before(since):
			base = now.n
		case now.n > base:
			return now.at, true
		}
	}
	return time.Time{}, false
}

// periods are the changes to a state since a moment.
func (p *process) periods(since time.Time, to string) []change {
	return slices.DeleteFunc(p.changes(since), func(c change) bool { return c.To != to })
}

// saw reports whether the process has logged a change for a reason since a moment.
func (p *process) saw(since time.Time, reason string) bool {
	return slices.ContainsFunc(p.changes(since), func(c change) bool { return c.Reason == reason })
}

// fill puts a value in the place of its name in a ferry.yaml.
func fill(config, name string, value any) string {
	return strings.ReplaceAll(config, name, fmt.Sprint(value))
}

func latest(times []time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// lastEnd is when the last of some jobs ended.
func lastEnd(jobs []*client.Job) (last time.Time) {
	for _, job := range jobs {
		if job.FinishedAt.After(last) {
			last = job.FinishedAt
		}
	}
	return last
}

// count is how many jobs were accepted so far.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.jobs)
}
