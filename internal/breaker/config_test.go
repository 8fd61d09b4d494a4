package breaker_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/ferry-queue/ferry/internal/breaker"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis writes a line to stderr for each failed dial
	// go-resiliency's timer sleeps until the open time is over.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/eapache/go-resiliency/breaker.(*Breaker).timer"))
}

func TestConfigDefaultsAreValid(t *testing.T) {
	require.NoError(t, breaker.Config{Name: "openai"}.Validate())
	require.NoError(t, breaker.LocalConfig{}.Validate())
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := breaker.Config{
		Name: "a{b}", Window: time.Millisecond, MinCalls: -1, FailureRatio: 1.5, Margin: 1, SlowCall: -1, SlowRatio: -0.1,
		OpenFor: time.Minute, MaxOpenFor: time.Second, OpenJitter: 1, ForgetTrips: -1, Probes: -1, ProbeLease: time.Second,
		PermitEvery: -1, Successes: -1, FoldEvery: time.Second, Poll: 2 * time.Second, Grace: -1,
		Local: breaker.LocalConfig{Failures: -1, Successes: -1, OpenFor: -1},
	}.Validate()
	require.EqualError(t, err, `breaker: name: "a{b}" is not 1 to 64 letters, digits or ._-
breaker: window: 1ms is below 100ms
breaker: min_calls: -1 is below 1
breaker: failure_ratio: 1.5 is not in (0, 1]
breaker: margin: 1 is not below 1
breaker: slow_ratio: -0.1 is not in (0, 1]
breaker: slow_call: -1ns is negative
breaker: max_open_for: 1s is below open_for 1m0s
breaker: open_jitter: 1 is not below 1
breaker: forget_trips: -1ns is not positive
breaker: probes: -1 is below 1
breaker: successes: -1 is below 1
breaker: fold_every: 1s is not in [1ms, 500µs], half the window
breaker: probe_lease: 1s is below twice the poll of 2s that renews it
breaker: permit_every: -1ns is not positive
breaker: grace: -1ns is not positive
breaker: local.failures: -1 is below 1
breaker: local.successes: -1 is below 1
breaker: local.open_for: -1ns is below 1ms`)
}

func TestNewRefusesABadConfig(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{})
	defer rdb.Close()
	_, err := breaker.New(rdb, breaker.Config{})
	require.ErrorContains(t, err, "name")
	_, err = breaker.NewLocal(breaker.LocalConfig{OpenFor: -1})
	require.ErrorContains(t, err, "local.open_for")
}

func TestParseModeReadsWhatStringWrites(t *testing.T) {
	for _, name := range []string{"auto", "open", "close"} {
		mode, err := breaker.ParseMode(name)
		require.NoError(t, err)
		require.Equal(t, name, mode.String())
	}
	_, err := breaker.ParseMode("unknown(3)")
	require.EqualError(t, err, `breaker: mode "unknown(3)" is not auto, open or close`)
}
