// Package httpx makes one HTTP call survive an upstream that fails, for calls that cost money.
//
// A call is a series of attempts with waits between them. [Client.Do] repeats an attempt as long as a [Policy] allows, and
// then says in one [Error] what went wrong, when a repeat makes sense, and which attempts were sent. Nothing is repeated
// unseen: the record has each attempt, also those whose outcome is unknown.
//
// The idea that carries the package: the classifier is the plan. After each failure one question is asked, "again, or
// not?", and a wait that is longer than a worker should be held is answered with "not here": the error carries the wait,
// and the caller's queue does the waiting. Backoff in process and delayed re-enqueue are one mechanism seen from two sides.
//
// The loop is go-resiliency's retrier; a breaker is anything with a Run method, and a refusal is noticed, not matched.
package httpx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/eapache/go-resiliency/retrier"
)

// Breaker decides whether an attempt may go out. Run either calls work exactly once and sees its result, or refuses
// without calling it; an error of a refusal may have a method RetryAfter() time.Duration that says for how long.
//
// work returns nil when the attempt says nothing bad about the upstream's health (a 400 too), an error when it does, and
// an error that matches context.Canceled when the caller gave up, which should count as neither.
type Breaker interface {
	Run(work func() error) error
}

// Config configures a Client. The zero value works.
type Config struct {
	Policy   Policy                `yaml:"policy"`   // for requests that bring none
	Pool     Pool                  `yaml:"pool"`     // connections
	Budget   BudgetConfig          `yaml:"budget"`   // share of traffic that may be retries
	MaxBody  int64                 `yaml:"max_body"` // largest response body in bytes, a larger one is Permanent; default 32 MiB
	Breaker  Breaker               `yaml:"-"`        // asked before each attempt; nil: none
	Classify func(Outcome) Verdict `yaml:"-"`        // meaning of outcomes; what it leaves Unclassified goes to Classify, the default
	Hooks    Hooks                 `yaml:"-"`        // observers
	Rand     func() float64        `yaml:"-"`        // chance for jitter, in [0,1), for concurrent use; default math/rand/v2.Float64

	// Transport wraps the pool's transport (for tracing) or replaces it (for tests). It is called once per Pool.Refresh.
	// What it returns must honour the request's context. nil: the pool's transport as it is.
	Transport func(pool http.RoundTripper) http.RoundTripper `yaml:"-"`
}

func (c Config) withDefaults() Config {
	c.Policy = c.Policy.WithDefaults()
	c.Pool = c.Pool.withDefaults()
	c.Budget = c.Budget.withDefaults()
	c.MaxBody = orDefault(c.MaxBody, 32<<20)
	if c.Classify == nil {
		c.Classify = Classify
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	return c
}

// Validate returns every problem of c at once, each starting with its key, or nil. Zero fields count as their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var body error
	if c.MaxBody < 1 {
		body = fmt.Errorf("max_body: %d is below 1", c.MaxBody)
	}
	return errors.Join(c.Policy.Validate(), c.Pool.validate(), c.Budget.validate(), body)
}

// Client makes calls to one upstream. It is safe for concurrent use; make one per upstream and keep it, since pool,
// budget and latencies belong to it.
type Client struct {
	cfg       Config
	pool      *pool
	budget    *budget
	retrier   *retrier.Retrier
	latencies latencies
	closed    atomic.Bool

	calls, attempts, retries, hedges, hedgeWins, refusals, failures atomic.Int64
}

// New returns a Client, or every problem of cfg at once.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("httpx: %w", err)
	}
	cfg = cfg.withDefaults()
	// One retrier serves all policies: its schedule is fixed when it is made, so it has none, and the plan in each
	// *Error decides about the next attempt and the wait before it.
	loop := retrier.New([]time.Duration{0}, planned{}).WithInfiniteRetry().WithSurfaceWorkErrors()
	return &Client{cfg: cfg, pool: newPool(cfg.Pool, cfg.Transport), budget: newBudget(cfg.Budget), retrier: loop}, nil
}

// Close closes idle connections. Calls in flight go on; later ones are refused.
func (c *Client) Close() {
	c.closed.Store(true)
	c.pool.close()
}

// Stats is a snapshot of what a Client has done.
type Stats struct {
	Calls     int64 // calls begun
	Attempts  int64 // attempts made, refused ones not counted
	Retries   int64 // attempts after a failed one of the same call
	Hedges    int64 // second attempts sent before the first one ended
	HedgeWins int64 // of these, answered first
	Refused   int64 // attempts refused by breaker, pool or a local limit
	Failed    int64 // calls that ended in an Error
	Pool      PoolStats
	Budget    BudgetStats
}

// Stats returns a snapshot. Its figures are read one after another and may be off by the calls of that moment.
func (c *Client) Stats() Stats {
	return Stats{
		Calls: c.calls.Load(), Attempts: c.attempts.Load(), Retries: c.retries.Load(),
		Hedges: c.hedges.Load(), HedgeWins: c.hedgeWins.Load(),
		Refused: c.refusals.Load(), Failed: c.failures.Load(),
		Pool: c.pool.stats(), Budget: c.budget.stats(),
	}
}

// Do makes the call. The error is always an *Error.
func (c *Client) Do(ctx context.Context, req Request) (*Response, error) {
	c.calls.Add(1)
	k := &call{client: c, req: req, start: time.Now()}
	if err := k.prepare(); err != nil {
		return nil, k.fail(ctx, k.reject(err))
	}
	err := c.retrier.RunFn(ctx, k.try)
	if err == nil {
		return &k.response, nil
	}
	e, _ := errors.AsType[*Error](err)
	if e.Stopped == "" { // the context ended between two attempts, inside the retrier
		e = k.canceled(ctx)
	}
	return nil, k.fail(ctx, e)
}

// planned is the retrier's classifier: the plan is in the error.
type planned struct{}

// Classify implements [retrier.Classifier].
func (planned) Classify(err error) retrier.Action {
	if err == nil {
		return retrier.Succeed
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Stopped == "" {
		return retrier.Retry
	}
	return retrier.Fail
}
