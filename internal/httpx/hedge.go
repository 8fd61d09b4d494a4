package httpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Hedge sends a second attempt when the first one takes unusually long; the first usable answer wins and the other attempt
// is canceled. A hedge counts as an attempt, needs a token of the retry budget and a free place in the pool, and is left out
// when there is none. It buys latency with money: both attempts may be billed.
type Hedge struct {
	On    bool          `yaml:"on"`    // default off
	Delay time.Duration `yaml:"delay"` // fixed delay; 0: the 95th percentile of recent answers of the same URL, none before 20 of them
	Min   time.Duration `yaml:"min"`   // lower bound of a measured delay; default 100ms
}

func (h Hedge) withDefaults() Hedge {
	h.Min = orDefault(h.Min, 100*time.Millisecond)
	return h
}

func (h Hedge) validate() error {
	var errs []error
	if h.Delay < 0 {
		errs = append(errs, fmt.Errorf("hedge.delay: %s is negative", h.Delay))
	}
	if h.Min < 0 {
		errs = append(errs, fmt.Errorf("hedge.min: %s is negative", h.Min))
	}
	return errors.Join(errs...)
}

// round makes one attempt, with a hedge where the policy wants one, and returns the exchange that counts.
func (k *call) round(ctx context.Context) *exchange {
	first := &exchange{call: k}
	if !k.policy.Hedge.On || k.req.Stream != nil {
		first.run(ctx)
		return first
	}
	x := first
	if delay, ok := k.hedgeDelay(); ok {
		x = k.race(ctx, first, delay)
	} else {
		first.run(ctx)
	}
	if x.verdict.Class == OK {
		k.client.latencies.of(k.req.URL).add(x.record.Duration)
	}
	return x
}

func (k *call) hedgeDelay() (time.Duration, bool) {
	if k.policy.Hedge.Delay > 0 {
		return k.policy.Hedge.Delay, true
	}
	p95, ok := k.client.latencies.of(k.req.URL).p95()
	return max(p95, k.policy.Hedge.Min), ok
}

// race runs first and, after delay, a second attempt. It returns when both have ended: canceling the loser takes
// microseconds, and its record must be complete.
func (k *call) race(ctx context.Context, first *exchange, delay time.Duration) *exchange {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	ended := make(chan *exchange, 2)
	start := func(x *exchange) {
		running.Go(func() {
			x.run(ctx)
			ended <- x
		})
	}
	start(first)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ended:
		return first
	case <-timer.C:
	}
	if len(k.attempts)+2 > k.policy.MaxAttempts || !k.client.budget.spend() {
		return <-ended
	}
	second := &exchange{call: k, hedge: true}
	start(second)
	winner := <-ended
	if winner.refusal != nil || winner.verdict.Class.Retryable() {
		winner = later(winner, <-ended) // the other one may still answer
	}
	cancel(errHedgeLost)
	running.Wait()
	return k.judge(ctx, first, second, winner)
}

// later returns the exchange that counts after a failed one and the one that ended later: the later one, unless both
// failed and the upstream asked for more patience before.
func later(failed, last *exchange) *exchange {
	if last.refusal == nil && last.verdict.Class.Retryable() && failed.verdict.Wait > last.verdict.Wait {
		return failed
	}
	return last
}

// judge enters the attempt that does not count and returns the one that does.
func (k *call) judge(ctx context.Context, first, second, winner *exchange) *exchange {
	if second.refusal != nil {
		k.client.budget.refund() // no place or an open breaker: the hedge never left
		return first
	}
	k.client.hedges.Add(1)
	if first.refusal != nil {
		return second
	}
	loser := first
	if winner == first {
		loser = second
	} else if winner.verdict.Class == OK {
		k.client.hedgeWins.Add(1)
		k.client.budget.refund()
	}
	k.record(ctx, loser)
	return winner
}

// latencies holds recent durations per URL. An upstream has a handful of endpoints; URLs beyond maxLatencies share one
// record, so that a caller with an ID in its URLs cannot fill the memory.
type latencies struct {
	mu    sync.Mutex // guards byURL
	byURL map[string]*latency
}

const maxLatencies = 64

func (l *latencies) of(url string) *latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byURL == nil {
		l.byURL = make(map[string]*latency)
	}
	if l.byURL[url] == nil && len(l.byURL) >= maxLatencies {
		url = ""
	}
	if l.byURL[url] == nil {
		l.byURL[url] = new(latency)
	}
	return l.byURL[url]
}

// latency is a ring of the last durations.
type latency struct {
	mu   sync.Mutex // guards the fields below
	ring [100]time.Duration
	n    int // durations added so far
}

const minLatencies = 20 // below this a percentile means nothing

func (l *latency) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.n%len(l.ring)] = d
	l.n++
}

func (l *latency) p95() (time.Duration, bool) {
	l.mu.Lock()
	n, sorted := min(l.n, len(l.ring)), l.ring
	l.mu.Unlock()
	if n < minLatencies {
		return 0, false
	}
	slices.Sort(sorted[:n])
	return sorted[(n*95+99)/100-1], true
}
