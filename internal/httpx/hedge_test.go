package httpx_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestHedge(t *testing.T) {
	const slow, fast = 10 * time.Second, time.Second
	tests := []struct {
		name   string
		steps  []step
		cfg    httpx.Config
		at     string        // requests
		took   time.Duration // the call
		ledger string        // class and hedge of each attempt
		wins   int64
	}{
		{
			name: "no hedge for a quick answer", steps: []step{{status: 200, after: fast}},
			at: "[0s]", took: fast, ledger: "[ok]",
		},
		{
			name: "the hedge wins", steps: []step{{status: 200, after: slow}, {status: 200, after: fast}},
			at: "[0s 2s]", took: 3 * time.Second, ledger: "[canceled ok+hedge]", wins: 1,
		},
		{
			name: "the first attempt wins", steps: []step{{status: 200, after: 3 * time.Second}, {status: 200, after: slow}},
			at: "[0s 2s]", took: 3 * time.Second, ledger: "[ok canceled+hedge]",
		},
		{
			name: "a failed hedge leaves the first attempt alone", steps: []step{{status: 200, after: 5 * time.Second}, {status: 500}},
			at: "[0s 2s]", took: 5 * time.Second, ledger: "[ok transient+hedge]",
		},
		{
			name: "a failed first attempt leaves the hedge alone", steps: []step{{status: 500, after: 3 * time.Second}, {status: 200, after: 5 * time.Second}},
			at: "[0s 2s]", took: 7 * time.Second, ledger: "[transient ok+hedge]", wins: 1,
		},
		{
			name: "both fail, and the last attempt answers", steps: []step{{status: 500, after: 3 * time.Second}, {status: 503, after: 3 * time.Second}, {status: 200}},
			at: "[0s 2s 7s]", took: 7 * time.Second, ledger: "[transient transient+hedge ok]",
		},
		{
			name: "both fail, and the longer hint counts", steps: []step{
				{status: 429, after: 3 * time.Second, header: "Retry-After: 30"}, {status: 503, after: 3 * time.Second}, {status: 200},
			},
			at: "[0s 2s 35s]", took: 35 * time.Second, ledger: "[throttled transient+hedge ok]",
		},
		{
			name: "an empty budget forbids it", steps: []step{{status: 200, after: slow}},
			cfg: httpx.Config{Budget: httpx.BudgetConfig{Burst: 1, Ratio: 1e-9, Floor: 1e-9}},
			at:  "[0s]", took: slow, ledger: "[ok]",
		},
		{
			name: "a full pool forbids it", steps: []step{{status: 200, after: slow}}, cfg: httpx.Config{Pool: httpx.Pool{MaxConns: 1}},
			at: "[0s]", took: slow, ledger: "[ok]",
		},
		{
			name: "an open breaker forbids it", steps: []step{{status: 200, after: slow}}, cfg: httpx.Config{Breaker: &onceBreaker{}},
			at: "[0s]", took: slow, ledger: "[ok]",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := exact(3)
				p.Hedge = httpx.Hedge{On: true, Delay: 2 * time.Second}
				tt.cfg.Policy = p
				s := newScript(tt.steps...)
				c := s.client(t, tt.cfg)
				if tt.cfg.Budget.Burst == 1 {
					spendBudget(t, c)
					s.at = nil
				}
				start := time.Now()
				s.start = start
				resp, err := c.Do(t.Context(), post)
				if err != nil {
					t.Fatal(err)
				}
				if got := s.times(); got != tt.at {
					t.Errorf("requests at %s, want %s", got, tt.at)
				}
				if got := time.Since(start); got != tt.took {
					t.Errorf("took %s, want %s", got, tt.took)
				}
				if got := ledger(resp.Attempts); got != tt.ledger {
					t.Errorf("attempts %s, want %s", got, tt.ledger)
				}
				if st := c.Stats(); st.HedgeWins != tt.wins || st.Pool.InUse != 0 {
					t.Errorf("%d hedges won and %d places in use, want %d and 0", st.HedgeWins, st.Pool.InUse, tt.wins)
				}
			})
		})
	}
}

// spendBudget makes one call whose retry takes the only token.
func spendBudget(t *testing.T, c *httpx.Client) {
	t.Helper()
	p := exact(2)
	p.Hedge = httpx.Hedge{On: true, Delay: time.Second}
	req := post
	req.Policy = &p
	_, _ = c.Do(t.Context(), req)
	if left := c.Stats().Budget.Tokens; left > 0.1 {
		t.Fatalf("%v tokens left", left)
	}
}

func ledger(attempts []httpx.Attempt) string {
	var words []string
	for _, a := range attempts {
		word := a.Class.String()
		if a.Hedge {
			word += "+hedge"
		}
		words = append(words, word)
	}
	return fmt.Sprint(words)
}

func TestHedge_ends_with_a_permanent_failure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := exact(3)
		p.Hedge = httpx.Hedge{On: true, Delay: 2 * time.Second}
		s := newScript(step{status: 400, after: 3 * time.Second}, step{status: 200, after: time.Hour})
		start := time.Now()
		_, err := s.client(t, httpx.Config{Policy: p}).Do(t.Context(), post)
		if e := failure(t, err); e.Reason != "http_400" || ledger(e.Attempts) != "[permanent canceled+hedge]" {
			t.Errorf("got %v with %s, want http_400 with [permanent canceled+hedge]", err, ledger(e.Attempts))
		}
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("took %s, want 3s", got)
		}
	})
}

func TestHedge_measures_its_delay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := exact(2)
		p.Hedge.On = true
		var steps []step
		for i := range 100 { // 10ms, 20ms, ... 1s
			steps = append(steps, step{status: 200, after: time.Duration(i+1) * 10 * time.Millisecond})
		}
		s := newScript(append(steps, step{status: 200, after: time.Minute})...)
		c := s.client(t, httpx.Config{Policy: p})
		for range 19 {
			if _, err := c.Do(t.Context(), post); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.Stats().Hedges; got != 0 {
			t.Errorf("%d hedges before anything is known", got)
		}
		hedged := func() bool {
			before := c.Stats().Hedges
			_, err := c.Do(t.Context(), post)
			return err == nil && c.Stats().Hedges > before
		}
		for range 30 { // rising latencies: each one is above the 95th percentile of those before
			hedged()
		}
		if c.Stats().Hedges == 0 {
			t.Error("no hedge although answers take longer than 95 % of those before")
		}
	})
}

func TestHedge_leaves_streams_alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := exact(2)
		p.Hedge = httpx.Hedge{On: true, Delay: time.Second}
		req := post
		req.Stream = func(int, []byte) error { return nil }
		s := newScript(step{status: 200, after: time.Minute})
		if _, err := s.client(t, httpx.Config{Policy: p}).Do(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if s.requests() != 1 {
			t.Errorf("%d requests, want 1", s.requests())
		}
	})
}
