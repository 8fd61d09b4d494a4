package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// poolMetrics reads the pool and the retry budget of every upstream at each scrape.
type poolMetrics struct {
	stats map[string]func() httpx.Stats // by upstream; complete before the first scrape
	rows  []poolRow
}

// poolRow is one metric and where it is found.
type poolRow struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(httpx.Stats) float64
}

var _ prometheus.Collector = (*poolMetrics)(nil)

func newPoolMetrics() *poolMetrics {
	row := func(name, help string, kind prometheus.ValueType, of func(httpx.Stats) float64) poolRow {
		return poolRow{prometheus.NewDesc("ferry_"+name, help, []string{"upstream"}, nil), kind, of}
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	return &poolMetrics{
		stats: make(map[string]func() httpx.Stats),
		rows: []poolRow{
			row("pool_in_use", "Places of the pool that attempts hold.", gauge, func(s httpx.Stats) float64 { return float64(s.Pool.InUse) }),
			row("pool_open_connections", "Connections to the upstream.", gauge, func(s httpx.Stats) float64 { return float64(s.Pool.Open) }),
			row("pool_waits_total", "Attempts that had to wait for a place.", counter, func(s httpx.Stats) float64 { return float64(s.Pool.Waits) }),
			row("pool_exhausted_total", "Attempts refused for want of a place.", counter, func(s httpx.Stats) float64 { return float64(s.Pool.Exhausted) }),
			row("pool_dials_total", "Connections asked for.", counter, func(s httpx.Stats) float64 { return float64(s.Pool.Dials) }),
			row("pool_dial_failures_total", "Connections that never became usable.", counter, func(s httpx.Stats) float64 { return float64(s.Pool.DialFails) }),
			row("pool_reused_total", "Attempts on a connection that had served before.", counter, func(s httpx.Stats) float64 { return float64(s.Pool.Reused) }),
			row("retry_budget_tokens", "Retries that could be made now.", gauge, func(s httpx.Stats) float64 { return s.Budget.Tokens }),
			row("retry_budget_denied_total", "Retries that the budget refused.", counter, func(s httpx.Stats) float64 { return float64(s.Budget.Denied) }),
		},
	}
}

// Describe sends the descriptions.
func (p *poolMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, r := range p.rows {
		ch <- r.desc
	}
}

// Collect sends the values of every upstream.
func (p *poolMetrics) Collect(ch chan<- prometheus.Metric) {
	for upstream, stats := range p.stats {
		s := stats()
		for _, r := range p.rows {
			ch <- prometheus.MustNewConstMetric(r.desc, r.kind, r.of(s), upstream)
		}
	}
}
