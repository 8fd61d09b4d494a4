package worker

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// metrics are what a worker tells Prometheus. Labels are enums and configured names.
type metrics struct {
	registry *prometheus.Registry
	ended    *prometheus.CounterVec
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	waits    *prometheus.CounterVec
	state    *prometheus.GaugeVec
	changes  *prometheus.CounterVec
	inline   *prometheus.CounterVec
	givenUp  *prometheus.CounterVec
	pools    *poolMetrics
}

func newMetrics(calls *tasks.Calls) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_jobs_ended_total", Help: "Jobs ended by this worker.",
		}, []string{"kind", "upstream", "state"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_attempts_total", Help: "HTTP exchanges with the upstream, by what their outcome means.",
		}, []string{"kind", "upstream", "class"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ferry_attempt_duration_seconds", Help: "Time of one HTTP exchange with the upstream.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300},
		}, []string{"kind", "upstream"}),
		waits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_waits_total", Help: "Times a job went back to the queue, by state and reason.",
		}, []string{"upstream", "state", "reason"}),
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ferry_breaker_state", Help: "1 for the state the upstream's breaker is in.",
		}, []string{"upstream", "state"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_breaker_changes_total", Help: "Changes of the breaker's state that this worker saw.",
		}, []string{"upstream", "state"}),
		inline: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_inline_wait_seconds_total", Help: "Time calls waited in the worker between two attempts.",
		}, []string{"upstream", "reason"}),
		givenUp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_calls_given_up_total", Help: "Calls that ended without an answer, by the last failure and why it went no further.",
		}, []string{"upstream", "class", "stopped"}),
		pools: newPoolMetrics(),
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ferry_calls_in_flight", Help: "Calls this worker is making.",
	}, func() float64 { return float64(calls.Len()) })
	m.registry.MustRegister(m.ended, m.attempts, m.duration, m.waits, m.state, m.changes, m.inline, m.givenUp, m.pools, inFlight,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// spool registers the figures of an outbox, which are read at each scrape.
func (m *metrics) spool(stats func() tasks.OutboxStats) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ferry_spool_entries", Help: "Answers on disk that wait for Redis.",
		}, func() float64 { return float64(stats().Entries) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ferry_spool_bytes", Help: "Bytes of the answers on disk.",
		}, func() float64 { return float64(stats().Bytes) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ferry_spool_delivered_total", Help: "Answers from disk that ended their jobs.",
		}, func() float64 { return float64(stats().Delivered) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ferry_spool_refused_total", Help: "Answers from disk whose jobs had ended otherwise, or were gone.",
		}, func() float64 { return float64(stats().Refused) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ferry_spool_failures_total", Help: "Answers that the disk did not take: full, over the limit, or broken.",
		}, func() float64 { return float64(stats().Failed) }),
	)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) hooks() tasks.Hooks {
	return tasks.Hooks{
		Attempt: func(job *tasks.Job, a tasks.Attempt) {
			m.attempts.WithLabelValues(string(job.Kind), job.Upstream, a.Class.String()).Inc()
			m.duration.WithLabelValues(string(job.Kind), job.Upstream).Observe(float64(a.DurationMS) / 1000)
		},
		Wait: func(job *tasks.Job, s tasks.State, reason string) {
			m.waits.WithLabelValues(job.Upstream, string(s), reason).Inc()
		},
		End: func(job *tasks.Job, s tasks.State, _ string) {
			m.ended.WithLabelValues(string(job.Kind), job.Upstream, string(s)).Inc()
		},
	}
}

// calls are the hooks of an upstream's client.
func (m *metrics) calls(upstream string) httpx.Hooks {
	return httpx.Hooks{
		Wait: func(_ context.Context, w httpx.Wait) {
			m.inline.WithLabelValues(upstream, w.Reason).Add(w.Duration.Seconds())
		},
		GiveUp: func(_ context.Context, e *httpx.Error) {
			m.givenUp.WithLabelValues(upstream, e.Class.String(), e.Stopped).Inc()
		},
	}
}

func (m *metrics) breakerChanged(upstream string, c breaker.Change) {
	m.breakerIs(upstream, c.State)
	m.changes.WithLabelValues(upstream, c.State.String()).Inc()
}

func (m *metrics) breakerIs(upstream string, state breaker.State) {
	for _, s := range []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen} {
		value := 0.0
		if s == state {
			value = 1
		}
		m.state.WithLabelValues(upstream, s.String()).Set(value)
	}
}
