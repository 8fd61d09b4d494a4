package worker

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// filled are metrics to which everything has happened once.
func filled() *metrics {
	m := newMetrics(tasks.NewCalls())
	m.spool(func() tasks.OutboxStats {
		return tasks.OutboxStats{Entries: 1, Bytes: 2, Delivered: 3, Refused: 4, Failed: 5}
	})
	job := &tasks.Job{ID: "job_1", Spec: tasks.Spec{Kind: openai.Chat, Upstream: "main"}}
	hooks := m.hooks()
	hooks.Attempt(job, tasks.Attempt{Class: httpx.Throttled, DurationMS: 250})
	hooks.Wait(job, tasks.Snoozed, "breaker_open")
	hooks.End(job, tasks.Failed, "a text of the upstream's")
	m.breakerChanged("main", breaker.Change{Status: breaker.Status{State: breaker.HalfOpen}})
	return m
}

func scrape(m *metrics) string {
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestMetricsPassTheLinter(t *testing.T) {
	families, err := filled().registry.Gather()
	require.NoError(t, err)
	ours := families[:0]
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "ferry_") {
			ours = append(ours, f)
		}
	}
	require.Len(t, ours, 12)
	problems, err := promlint.NewWithMetricFamilies(ours).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestHooksCount(t *testing.T) {
	text := scrape(filled())
	for _, line := range []string{
		`ferry_attempts_total{class="throttled",kind="chat",upstream="main"} 1`,
		`ferry_attempt_duration_seconds_sum{kind="chat",upstream="main"} 0.25`,
		`ferry_waits_total{reason="breaker_open",state="snoozed",upstream="main"} 1`,
		`ferry_jobs_ended_total{kind="chat",state="failed",upstream="main"} 1`,
		`ferry_calls_in_flight 0`,
		`ferry_spool_entries 1`,
		`ferry_spool_bytes 2`,
		`ferry_spool_delivered_total 3`,
		`ferry_spool_refused_total 4`,
		`ferry_spool_failures_total 5`,
	} {
		require.Contains(t, text, "\n"+line+"\n")
	}
	require.NotContains(t, text, "job_1", "no label names a job")
	require.NotContains(t, text, "a text", "nor repeats what an upstream wrote")
}

// Exactly one state is 1, so that a sum over upstreams counts breakers.
func TestTheBreakerGaugeHasOneState(t *testing.T) {
	m := newMetrics(tasks.NewCalls())
	for _, state := range []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Closed} {
		m.breakerIs("main", state)
		text := scrape(m)
		require.Equal(t, 3, strings.Count(text, "\nferry_breaker_state{"))
		require.Equal(t, 1, strings.Count(text, `",upstream="main"} 1`))
		require.Contains(t, text, `ferry_breaker_state{state="`+state.String()+`",upstream="main"} 1`)
	}
}
