package httpx_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// outage makes calls calls at a rate of 100 per second against an upstream that always fails and returns how often it was
// asked per call.
func outage(t *testing.T, calls int, budget httpx.BudgetConfig) (amplification float64) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 503})
		c := s.client(t, httpx.Config{Policy: exact(4), Budget: budget, Pool: httpx.Pool{MaxConns: calls}})
		var running sync.WaitGroup
		for range calls {
			running.Go(func() { _, _ = c.Do(t.Context(), post) })
			time.Sleep(10 * time.Millisecond) // virtual: an open loop of arrivals
		}
		running.Wait()
		amplification = float64(s.requests()) / float64(calls)
	})
	return amplification
}

func TestBudget_bounds_the_load_of_an_outage(t *testing.T) {
	const calls = 10_000
	with, without := outage(t, calls, httpx.BudgetConfig{}), outage(t, calls, httpx.BudgetConfig{Off: true})
	t.Logf("amplification with budget %.3f, without %.3f", with, without)
	if with > 1.2 {
		t.Errorf("load multiplied by %.4f with the default budget, want at most 1.2", with)
	}
	if without != 4 {
		t.Errorf("load multiplied by %.4f without a budget, want 4", without)
	}
}

// A third of all attempts fails, and next to no call does: retries that help are paid back.
func TestBudget_does_not_limit_retries_that_help(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 503}, step{status: 200}, step{status: 200})
		s.loop = true
		c := s.client(t, httpx.Config{Policy: exact(3)})
		for range 2000 {
			if _, err := c.Do(t.Context(), post); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // virtual
		}
		if b := c.Stats().Budget; b.Denied != 0 {
			t.Errorf("budget %+v, want no retry denied", b)
		}
	})
}

func TestBudget_spent_hands_the_wait_back(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 500})
		c := s.client(t, httpx.Config{Policy: exact(3), Budget: httpx.BudgetConfig{Burst: 1, Ratio: 1e-9, Floor: 1e-9}})
		_, err := c.Do(t.Context(), post)
		e := failure(t, err)
		if e.Class != httpx.Transient || e.Stopped != httpx.StoppedBudget || e.Wait != 2*time.Second || len(e.Attempts) != 2 {
			t.Errorf("got %v, want a transient failure after 2 attempts that hands back 2s", err)
		}
		if b := c.Stats().Budget; b.Spent != 1 || b.Denied != 1 || b.Tokens > 0.1 {
			t.Errorf("budget %+v, want 1 spent, 1 denied, none left", b)
		}
	})
}

func TestBudget_gets_the_token_of_a_successful_retry_back(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 500}, step{status: 200})
		c := s.client(t, httpx.Config{Policy: exact(3), Budget: httpx.BudgetConfig{Burst: 5, Ratio: 1e-9, Floor: 1e-9}})
		if _, err := c.Do(t.Context(), post); err != nil {
			t.Fatal(err)
		}
		if b := c.Stats().Budget; b.Tokens < 4.999 {
			t.Errorf("%v tokens left, want 5", b.Tokens)
		}
	})
}

func TestBudget_floor_serves_a_client_with_little_traffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 500})
		c := s.client(t, httpx.Config{Policy: exact(2), Budget: httpx.BudgetConfig{Burst: 1, Ratio: 1e-9, Floor: 0.1}})
		for range 5 { // one call per 10 s earns one retry
			_, err := c.Do(t.Context(), post)
			if e := failure(t, err); e.Stopped != httpx.StoppedAttempts {
				t.Errorf("stopped by %s, want %s", e.Stopped, httpx.StoppedAttempts)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// A breaker that opens between two attempts: the retry never left, so its token comes back.
func TestBudget_gets_the_token_of_a_refused_retry_back(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(step{status: 500})
		c := s.client(t, httpx.Config{
			Policy: exact(3), Breaker: &onceBreaker{}, Budget: httpx.BudgetConfig{Burst: 5, Ratio: 1e-9, Floor: 1e-9},
		})
		_, err := c.Do(t.Context(), post)
		if e := failure(t, err); e.Class != httpx.Refused || len(e.Attempts) != 1 {
			t.Errorf("got %v, want a refusal after one attempt", err)
		}
		if b := c.Stats().Budget; b.Tokens < 4.999 {
			t.Errorf("%v tokens left, want 5", b.Tokens)
		}
	})
}

// onceBreaker lets one attempt through.
type onceBreaker struct{ ran atomic.Bool }

func (b *onceBreaker) Run(work func() error) error {
	if b.ran.Swap(true) {
		return openBreaker{time.Second}
	}
	return work()
}
