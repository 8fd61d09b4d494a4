package api

import (
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what the server tells Prometheus. Labels are enums: routes, methods, status codes, kinds,
// configured upstreams.
type metrics struct {
	registry *prometheus.Registry
	accepted *prometheus.CounterVec
	requests *prometheus.HistogramVec
}

func newMetrics(queues prometheus.Collector) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ferry_jobs_accepted_total", Help: "Jobs made durable.",
		}, []string{"kind", "upstream"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ferry_http_request_duration_seconds", Help: "Time from a request's header to the end of its reply; long polls included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method", "code"}),
	}
	m.registry.MustRegister(m.accepted, m.requests, queues,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) observe(v middleware.RequestLoggerValues) {
	route := v.RoutePath
	if route == "" {
		route = "unknown"
	}
	m.requests.WithLabelValues(route, methodLabel(v.Method), strconv.Itoa(v.Status)).Observe(v.Latency.Seconds())
}

// methodLabel keeps made-up methods from making series.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodPatch:
		return method
	default:
		return "other"
	}
}
