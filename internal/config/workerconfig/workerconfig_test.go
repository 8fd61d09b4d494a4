package workerconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/config/workerconfig"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
	"github.com/ferry-queue/ferry/internal/worker"
)

func of(t *testing.T, text string) (worker.Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ferry.yaml")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	cfg, err := config.Load(config.Source{File: name, Getenv: func(string) string { return "" }})
	require.NoError(t, err)
	return workerconfig.Of(cfg)
}

func TestOfHandsEverySettingOn(t *testing.T) {
	cfg, err := of(t, `
worker: {poll: 1s, drain: 9s, concurrency: 3, spool_dir: /answers, spool_limit: 17}
jobs: {max_attempts: 7, retention: 1h, expires_in: 2h, max_retention: 3h, max_crashes: 2, backoff: {base: 4s, jitter: none}}
upstreams:
- name: a
  base_url: http://a/v1
  breaker: {window: 20s, min_calls: 5, failure_ratio: 0.5, hard_failures: -1, slow_call: 30s, slow_ratio: 0.9, open_for: 1s,
    max_open_for: 10s, probes: 2, probe_lease: 6s, successes: 4, ramp: -1s}
- {name: b, base_url: http://b/v1}
`)
	require.NoError(t, err)
	require.Equal(t, tasks.Config{MaxAttempts: 7, Retention: time.Hour, ExpiresIn: 2 * time.Hour, MaxRetention: 3 * time.Hour, MaxCrashes: 2}, cfg.Jobs)
	require.Equal(t, worker.Spool{Dir: "/answers", Limit: 17}, cfg.Spool)
	require.Equal(t, []time.Duration{time.Second, 9 * time.Second}, []time.Duration{cfg.Poll, cfg.Drain})
	require.Equal(t, httpx.Backoff{Base: 4 * time.Second, Max: 30 * time.Second, Multiplier: 2, Jitter: httpx.JitterNone}, cfg.Backoff)
	require.Len(t, cfg.Upstreams, 2)
	require.Equal(t, 3, cfg.Upstreams[0].Concurrency)
	require.Equal(t, breaker.Config{
		Name: "a", Window: 20 * time.Second, MinCalls: 5, FailureRatio: 0.5, HardFailures: -1, SlowCall: 30 * time.Second, SlowRatio: 0.9,
		OpenFor: time.Second, MaxOpenFor: 10 * time.Second, Probes: 2, ProbeLease: 6 * time.Second, Successes: 4, Ramp: -time.Second,
	}, cfg.Upstreams[0].Breaker)
	require.Equal(t, breaker.Config{Name: "b"}, cfg.Upstreams[1].Breaker)
	require.NotEmpty(t, cfg.Version)
}

func TestOfNamesEveryProblem(t *testing.T) {
	_, err := of(t, `
jobs: {backoff: {base: 1m, max: 1s, multiplier: 0.5}}
upstreams:
- {name: a, base_url: http://a/v1, policies: {chat: {total: 3h}, generate: {total: -1s}}}
- {name: b, base_url: http://b/v1, breaker: {window: 1ms, failure_ratio: 2, probes: -1}}
`)
	require.Error(t, err)
	for _, want := range []string{
		"jobs.backoff.max: 1s is below base 1m0s",
		"jobs.backoff.multiplier: 0.5",
		"upstreams[0].policies.chat.total: 3h0m0s",
		"upstreams[0].policies.generate.total: -1s",
		"upstreams[1].breaker.window: 1ms",
		"upstreams[1].breaker.failure_ratio: 2",
		"upstreams[1].breaker.probes: -1",
	} {
		require.Contains(t, "\n"+err.Error(), "\n"+want)
	}
	require.NotContains(t, err.Error(), "upstreams[0].breaker")
}

// What the example shows is what an operator gets who sets nothing.
func TestTheExampleShowsTheDefaults(t *testing.T) {
	example, err := os.ReadFile("../../../ferry.example.yaml")
	require.NoError(t, err)
	shown, err := of(t, strings.Replace(string(example), "api_key_env: OPENAI_API_KEY", "", 1))
	require.NoError(t, err)
	silent, err := of(t, "upstreams: [{name: openai, base_url: https://api.openai.com/v1}]")
	require.NoError(t, err)

	require.Equal(t, silent.Jobs.WithDefaults(), shown.Jobs.WithDefaults())
	require.Equal(t, silent.Backoff, shown.Backoff)
	require.Equal(t, worker.Spool{Dir: ".ferry/spool", Optional: true}, silent.Spool)
	require.Equal(t, worker.Spool{Dir: ".ferry/spool", Limit: 1 << 30}, shown.Spool)
	want, got := silent.Upstreams[0], shown.Upstreams[0]
	require.Equal(t, want.Breaker.WithDefaults(), got.Breaker.WithDefaults())
	want.Config, got.Config = want.WithDefaults(), got.WithDefaults()
	for _, kind := range openai.Kinds() {
		require.Equal(t, want.Policies[kind], got.Policies[kind], kind)
	}
	require.Equal(t, httpx.Pool{
		MaxConns: want.Concurrency, MaxIdle: want.Concurrency, IdleTimeout: 30 * time.Second, Wait: time.Second,
		Refresh: 5 * time.Minute, DialTimeout: 5 * time.Second, TLSTimeout: 5 * time.Second,
	}, got.Pool, "as documented with its fields")
	require.Equal(t, httpx.BudgetConfig{Ratio: 0.2, Floor: 1, Burst: 10}, got.Budget, "as documented with its fields")
	require.Equal(t, []time.Duration{20 * time.Millisecond, 30 * time.Second}, []time.Duration{shown.Poll, shown.Drain})
	require.Equal(t, []any{want.Concurrency, want.MaxAnswer}, []any{got.Concurrency, got.MaxAnswer})
}
