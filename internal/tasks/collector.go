package tasks

import (
	"log/slog"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Collector reads asynq's queues at each scrape. The names are those of asynq's own exporter, so that
// public dashboards and asynqmon's charts work.
type Collector struct {
	inspect *asynq.Inspector
	log     *slog.Logger

	enqueued, size, latency, memory, processed, failed, paused *prometheus.Desc
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns a collector on a client.
func NewCollector(rdb redis.UniversalClient, log *slog.Logger) *Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("asynq_"+name, help, append([]string{"queue"}, labels...), nil)
	}
	return &Collector{
		inspect: asynq.NewInspectorFromRedisClient(rdb), log: log,
		enqueued:  desc("tasks_enqueued_total", "Tasks in the queue, by state.", "state"),
		size:      desc("queue_size", "Tasks in the queue."),
		latency:   desc("queue_latency_seconds", "Age of the oldest pending task."),
		memory:    desc("queue_memory_usage_approx_bytes", "Memory of the queue in Redis, estimated."),
		processed: desc("tasks_processed_total", "Tasks processed, failed ones included."),
		failed:    desc("tasks_failed_total", "Tasks failed."),
		paused:    desc("queue_paused_total", "1 if the queue is paused."),
	}
}

// Describe sends the descriptions.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.enqueued, c.size, c.latency, c.memory, c.processed, c.failed, c.paused} {
		ch <- d
	}
}

// Collect sends the values of every queue. A Redis that does not answer gives none.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	queues, err := c.inspect.Queues()
	if err != nil {
		c.log.Debug("queues not read", slog.Any("error", err))
		return
	}
	for _, queue := range queues {
		info, err := c.inspect.GetQueueInfo(queue)
		if err != nil {
			c.log.Debug("queue not read", slog.String("queue", queue), slog.Any("error", err))
			continue
		}
		c.collect(ch, info)
	}
}

func (c *Collector) collect(ch chan<- prometheus.Metric, q *asynq.QueueInfo) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{q.Queue}, labels...)...)
	}
	for state, n := range map[string]int{
		"active": q.Active, "pending": q.Pending, "scheduled": q.Scheduled, "retry": q.Retry,
		"archived": q.Archived, "completed": q.Completed, "aggregating": q.Aggregating,
	} {
		gauge(c.enqueued, float64(n), state)
	}
	gauge(c.size, float64(q.Size))
	gauge(c.latency, q.Latency.Seconds())
	gauge(c.memory, float64(q.MemoryUsage))
	ch <- prometheus.MustNewConstMetric(c.processed, prometheus.CounterValue, float64(q.ProcessedTotal), q.Queue)
	ch <- prometheus.MustNewConstMetric(c.failed, prometheus.CounterValue, float64(q.FailedTotal), q.Queue)
	paused := 0.0
	if q.Paused {
		paused = 1
	}
	gauge(c.paused, paused)
}
