package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// verdicts reads and overrides the fleet's breaker of one upstream. It is a matter of Redis alone: the
// API still calls nobody.
type verdicts interface {
	Fetch(ctx context.Context) (breaker.Status, error)
	Override(ctx context.Context, mode breaker.Mode) error
}

// upstreamObject is an upstream as the fleet sees it.
type upstreamObject struct {
	Name    string        `json:"name"`
	Object  string        `json:"object"` // "upstream"
	Breaker breakerObject `json:"breaker"`
	Jobs    backlogObject `json:"jobs"`
}

type breakerObject struct {
	State        string    `json:"state"` // closed, open, half-open
	Mode         string    `json:"mode"`  // auto, or what an operator has forced: open, close
	Reason       string    `json:"reason,omitempty"`
	Since        time.Time `json:"since,omitzero"`
	OpenUntil    time.Time `json:"open_until,omitzero"` // when probes begin
	Calls        int64     `json:"calls"`               // of the window while closed, else those that decided
	Failures     int64     `json:"failures"`
	FailureRatio float64   `json:"failure_ratio"`
	Slow         int64     `json:"slow"`
	Trips        int64     `json:"trips"` // openings without a rest between them
	Probes       int64     `json:"probes"`
}

type backlogObject struct {
	Ready         int     `json:"ready"`
	Taken         int     `json:"taken"` // by workers: in a call, or held until the breaker lets one pass
	Waiting       int     `json:"waiting"`
	OldestSeconds float64 `json:"oldest_seconds"`
	Paused        bool    `json:"paused"` // by an operator, in the dashboard
}

// newVerdicts returns the breakers the server shows, by name.
func (s *Server) newVerdicts(rdb redis.UniversalClient) error {
	s.verdicts = make(map[string]verdicts, len(s.cfg.Upstreams))
	for _, name := range s.cfg.Upstreams {
		cfg := s.cfg.Breakers[name]
		cfg.Name = name
		b, err := breaker.New(rdb, cfg)
		if err != nil {
			return fmt.Errorf("api: upstream %s: %w", name, err)
		}
		s.verdicts[name] = b
	}
	return nil
}

// upstreams is GET /v1/upstreams, in the order of the configuration.
func (s *Server) upstreams(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	out := struct {
		Object string           `json:"object"`
		Data   []upstreamObject `json:"data"`
	}{Object: "list", Data: make([]upstreamObject, 0, len(s.cfg.Upstreams))}
	for _, name := range s.cfg.Upstreams {
		o, err := s.upstream(ctx, name)
		if err != nil {
			return err
		}
		out.Data = append(out.Data, o)
	}
	return writeJSON(c, http.StatusOK, out)
}

func (s *Server) upstream(ctx context.Context, name string) (upstreamObject, error) {
	st, err := s.verdicts[name].Fetch(ctx)
	if err != nil {
		return upstreamObject{}, err
	}
	backlog, err := s.queue.Backlog(name)
	if err != nil {
		return upstreamObject{}, err
	}
	return upstreamObject{Name: name, Object: "upstream", Breaker: breakerOf(st), Jobs: backlogOf(backlog)}, nil
}

func breakerOf(s breaker.Status) breakerObject {
	o := breakerObject{
		State: s.State.String(), Mode: s.Mode.String(), Since: milli(s.Since),
		Calls: s.Calls, Failures: s.Failures, FailureRatio: s.FailureRatio(), Slow: s.Slow, Trips: s.Trips, Probes: s.Probes,
	}
	if s.Reason != 0 {
		o.Reason = s.Reason.String()
	}
	if !s.OpenUntil.IsZero() {
		o.OpenUntil = milli(s.OpenUntil)
	}
	return o
}

func backlogOf(b tasks.Backlog) backlogObject {
	return backlogObject{
		Ready: b.Ready, Taken: b.Taken, Waiting: b.Waiting, OldestSeconds: b.Oldest.Seconds(), Paused: b.Paused,
	}
}

// override is POST /v1/upstreams/{name}/{open|close|auto}: an operator knows better than the numbers.
func (s *Server) override(c echo.Context) error {
	name := c.Param("name")
	v, ok := s.verdicts[name]
	if !ok {
		return &Error{
			Status: http.StatusNotFound, Type: invalidRequest, Code: "unknown_upstream", Param: "name",
			Message: fmt.Sprintf("name: %q is not configured; give one of %s.", cut(name, 100), strings.Join(s.cfg.Upstreams, ", ")),
		}
	}
	mode, err := breaker.ParseMode(c.Param("mode"))
	if err != nil {
		return badField("mode", "invalid_value", "%q is not one of open, close, auto", c.Param("mode"))
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	if err := v.Override(ctx, mode); err != nil {
		return err
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "breaker overridden", slog.String("upstream", name), slog.String("mode", mode.String()),
		slog.String("request_id", requestID(c)), slog.String("remote", c.RealIP()))
	o, err := s.upstream(ctx, name)
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, o)
}
