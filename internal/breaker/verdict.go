package breaker

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed verdict.lua
var verdictSource string

// verdictScript is every operation on the fleet's verdict.
//
//	KEYS[1] hash    the record: epoch, state, mode, reason, reopen_at, ramp_end, trips, run, probe_successes,
//	                probe_failures, calls, failures, slow
//	KEYS[2] hash    the window: beginning of a bucket in ms -> "calls failures slow"; expires
//	KEYS[3] zset    probe leases: token -> end in ms; expires
//	ARGV[1] operation  [2] channel of changes  [3..16] the Config as in Config.arguments
//	ARGV[17...] by operation:
//	  fold      epoch, healthy, unhealthy, slow, token of a probe in flight...
//	  permit    token
//	  settle    token, epoch, outcome
//	  override  mode
//	  read
//	result  16 integers, as in newVerdict
//
// A fold adds outcomes to the window if they belong to the current period, may
// open the breaker, and renews the leases of probes in flight; with no outcome
// it is the poll. A permit leases a probe if one is free. Settle ends a lease
// and may close or reopen. Each of them first moves an open breaker whose time
// is over to half-open, and publishes the new epoch if anything changed. A read
// writes nothing, so it may come from a process with another Config.
//
// One script, because counting, deciding and leasing must see one state: two
// workers that fold the deciding outcome must cause one trip, and two that ask
// for the last permit must not both get it. The clock is Redis', so the
// workers' clocks need not agree. All keys share a hash tag: it runs on Redis
// Cluster, and on Redis 6.2 or later. A client that repeats it after a lost
// reply counts those outcomes twice, or leaves a lease to expire: both are
// harmless.
var verdictScript = redis.NewScript(verdictSource)

// Operations of verdictScript.
const (
	opFold     = "fold"
	opPermit   = "permit"
	opSettle   = "settle"
	opOverride = "override"
	opRead     = "read"
)

// keys are where the verdict on one upstream lives.
func keys(name string) []string {
	return []string{key(name, "state"), key(name, "window"), key(name, "probes")}
}

// channel is where changes of the verdict are published.
func channel(name string) string { return key(name, "changes") }

func key(name, part string) string { return "ferry:breaker:{" + name + "}:" + part }

// arguments are c as the script reads it: durations in milliseconds. jitter is
// the factor of an open time that this operation may begin.
func (c Config) arguments(jitter float64) []any {
	return []any{
		c.Window.Milliseconds(), c.MinCalls, c.FailureRatio, c.SlowRatio, max(0, c.Margin), max(0, c.HardFailures),
		c.OpenFor.Milliseconds(), c.MaxOpenFor.Milliseconds(), c.ForgetTrips.Milliseconds(),
		c.Probes, c.ProbeLease.Milliseconds(), c.Successes, max(0, c.Ramp).Milliseconds(), jitter,
	}
}

// verdict is what Redis says about an upstream at one moment.
type verdict struct {
	asked    time.Time     // when the question was sent
	epoch    int64         // version: time of the last change, in ms by Redis' clock
	age      time.Duration // since the last change
	state    State
	mode     Mode
	reason   Reason
	reopenIn time.Duration // remaining open time
	rampLeft time.Duration
	trips    int64
	run      int64 // consecutive failures
	calls    int64 // in the window while closed, else those that decided
	failures int64
	slow     int64
	probes   int64 // live leases
	granted  bool  // to this permit operation

	probeSuccesses int64 // of this half-open period or the one before this state
	probeFailures  int64
}

// newVerdict reads the script's result.
func newVerdict(r []int64) (verdict, error) {
	if len(r) != 16 {
		return verdict{}, fmt.Errorf("breaker: verdict of %d numbers, want 16", len(r))
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return verdict{
		epoch: r[0], age: ms(r[1]), state: State(r[2]), mode: Mode(r[3]), reason: Reason(r[4]),
		reopenIn: ms(r[5]), rampLeft: ms(r[6]), trips: r[7], run: r[8],
		probeSuccesses: r[9], probeFailures: r[10],
		calls: r[11], failures: r[12], slow: r[13], probes: r[14], granted: r[15] == 1,
	}, nil
}

// ask runs one operation. It takes at most Config.Grace, if the client honors
// its context.
func (b *Shared) ask(ctx context.Context, operation string, args ...any) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Grace)
	defer cancel()
	jitter := 1 + max(0, b.cfg.OpenJitter)*(2*b.rnd()-1)
	argv := append([]any{operation, channel(b.cfg.Name)}, b.cfg.arguments(jitter)...)
	asked := time.Now()
	r, err := verdictScript.Run(ctx, b.rdb, keys(b.cfg.Name), append(argv, args...)...).Int64Slice()
	if err != nil {
		return verdict{}, fmt.Errorf("breaker: %s: %s: %w", b.cfg.Name, operation, err)
	}
	d, err := newVerdict(r)
	d.asked = asked
	return d, err
}
