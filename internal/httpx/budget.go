package httpx

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// BudgetConfig bounds retries (and hedges) to a share of the traffic of one Client.
//
// The budget is a token bucket. Each call earns Ratio tokens, or Floor tokens per second since the call before if that is
// more; each retry costs one; a retry that succeeds gets its token back, since it did good. So while a third of the
// attempts fail, retries are not limited, and a full outage multiplies a client's load by 1.15 plus Burst retries once,
// whatever MaxAttempts says: by less than 1.2 when it lasts for more than 200 calls.
//
// The bucket is per process and not shared: N workers earn and spend N times as much, so the share holds for the fleet
// too, while Burst and Floor multiply by N. It covers retries in process only. A job put back into the queue comes again
// as a new call; spacing those out is the business of the queue and the breaker.
type BudgetConfig struct {
	Off   bool    `yaml:"off"`   // no budget
	Ratio float64 `yaml:"ratio"` // retries per call, between 0 and 1; default 0.15
	Floor float64 `yaml:"floor"` // retries per second that are always allowed, for clients with little traffic; default 1
	Burst float64 `yaml:"burst"` // most tokens the bucket holds, and what it starts with; default 10
}

func (b BudgetConfig) withDefaults() BudgetConfig {
	b.Ratio = orDefault(b.Ratio, 0.15)
	b.Floor = orDefault(b.Floor, 1)
	b.Burst = orDefault(b.Burst, 10)
	return b
}

func (b BudgetConfig) validate() error {
	var errs []error
	if !(b.Ratio >= 0 && b.Ratio <= 1) {
		errs = append(errs, fmt.Errorf("budget.ratio: %v is not between 0 and 1", b.Ratio))
	}
	if !(b.Floor >= 0) {
		errs = append(errs, fmt.Errorf("budget.floor: %v is negative", b.Floor))
	}
	if !(b.Burst >= 1) {
		errs = append(errs, fmt.Errorf("budget.burst: %v is below 1", b.Burst))
	}
	return errors.Join(errs...)
}

// BudgetStats is a snapshot of the retry budget.
type BudgetStats struct {
	Tokens float64 // retries that could be made now
	Spent  int64   // retries and hedges allowed so far
	Denied int64   // retries and hedges refused so far
}

type budget struct {
	cfg BudgetConfig

	mu     sync.Mutex // guards the fields below
	tokens float64
	last   time.Time
	spent  int64
	denied int64
}

func newBudget(cfg BudgetConfig) *budget {
	return &budget{cfg: cfg, tokens: cfg.Burst, last: time.Now()}
}

// earn notes one call that started at now.
func (b *budget) earn(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gain := max(b.cfg.Ratio, b.cfg.Floor*now.Sub(b.last).Seconds())
	b.tokens = min(b.tokens+gain, b.cfg.Burst)
	b.last = now
}

// spend takes a token for one retry, or reports false.
func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	// The tolerance keeps ten calls at 0.1 worth one retry in binary fractions too.
	if !b.cfg.Off && b.tokens < 1-1e-9 {
		b.denied++
		return false
	}
	b.tokens = max(b.tokens-1, 0)
	b.spent++
	return true
}

// refund gives back the token of a retry that succeeded.
func (b *budget) refund() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+1, b.cfg.Burst)
}

func (b *budget) stats() BudgetStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BudgetStats{Tokens: b.tokens, Spent: b.spent, Denied: b.denied}
}
