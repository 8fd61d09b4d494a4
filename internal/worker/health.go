package worker

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// pingTimeout is how long Redis may take to answer a probe.
const pingTimeout = 2 * time.Second

type health struct {
	Status    string            `json:"status"`
	Version   string            `json:"version"`
	InFlight  int               `json:"in_flight"`
	Upstreams map[string]string `json:"upstreams"` // the state of each breaker
}

// health is GET /readyz and /healthz: the worker takes jobs, and Redis answers. A breaker that is open is
// shown but makes no worker unready: another worker would find it open too.
func (w *Worker) health(rw http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), pingTimeout)
	defer cancel()
	switch {
	case !closed(w.ready):
		w.answer(rw, http.StatusServiceUnavailable, "starting")
	case closed(w.gone):
		w.answer(rw, http.StatusServiceUnavailable, "draining")
	case w.queue.Ping(ctx) != nil:
		w.answer(rw, http.StatusServiceUnavailable, "redis does not answer")
	default:
		w.answer(rw, http.StatusOK, "ok")
	}
}

func (w *Worker) answer(rw http.ResponseWriter, code int, status string) {
	h := health{Status: status, Version: w.cfg.Version, InFlight: w.calls.Len(), Upstreams: make(map[string]string)}
	for _, u := range w.units {
		h.Upstreams[u.upstream.Name()] = u.breaker.Status().State.String()
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(code)
	_ = json.NewEncoder(rw).Encode(h) // the prober may have gone
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
