package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// submit is POST /v1/jobs: 202 once the job is in Redis.
func (s *Server) submit(c echo.Context) error {
	key, err := idempotencyKey(c.Request().Header)
	if err != nil {
		return err
	}
	body, err := readBody(c.Response(), c.Request(), s.cfg.MaxBody)
	if err != nil {
		return err
	}
	sub, err := parseSubmission(body, key, s.cfg.Upstreams, s.cfg.Jobs, time.Now())
	if err != nil {
		return err
	}
	if s.cfg.Full() {
		return storageFull(nil)
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	job, created, err := s.queue.Submit(ctx, sub)
	if err != nil {
		return err
	}
	h := c.Response().Header()
	h.Set("Location", "/v1/jobs/"+job.ID)
	h.Set("X-Ferry-Job-Id", job.ID)
	if created {
		s.metrics.accepted.WithLabelValues(string(job.Kind), job.Upstream).Inc()
	} else {
		h.Set("Idempotent-Replayed", "true")
	}
	return writeJSON(c, http.StatusAccepted, objectOf(job))
}

// get is GET /v1/jobs/{id}, with ?wait= a long poll that answers when the job has ended or the wait is
// over.
func (s *Server) get(c echo.Context) error {
	id := c.Param("id")
	wait, err := s.waitOf(c.QueryParam("wait"))
	if err != nil {
		return err
	}
	var job *tasks.Job
	if wait > 0 {
		ctx, cancel := context.WithTimeout(c.Request().Context(), wait)
		defer cancel()
		defer context.AfterFunc(s.stopping, cancel)()
		job, err = s.queue.Wait(ctx, id)
	} else {
		ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
		defer cancel()
		job, err = s.queue.Get(ctx, id, tasks.Full)
	}
	if err != nil {
		return err
	}
	return s.writeJob(c, job)
}

func (s *Server) waitOf(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	wait, err := time.ParseDuration(text)
	if err != nil {
		return 0, badField("wait", "invalid_duration", `%q is not a duration; write it as 30s or 2m`, text)
	}
	if wait < 0 {
		return 0, badField("wait", "out_of_range", "%s is negative", text)
	}
	return min(wait, s.cfg.MaxWait), nil // whoever wants to wait longer asks again
}

// writeJob answers with a job, or with 304 if the client has it as it stands.
func (s *Server) writeJob(c echo.Context, job *tasks.Job) error {
	etag := fmt.Sprintf("%q", strconv.FormatInt(job.UpdatedAt.UnixMicro(), 36))
	c.Response().Header().Set("ETag", etag)
	if c.Request().Method == http.MethodGet && hasETag(c.Request().Header.Values("If-None-Match"), etag) {
		return c.NoContent(http.StatusNotModified)
	}
	return writeJSON(c, http.StatusOK, objectOf(job))
}

// hasETag compares as RFC 9110 §13.1.2 has it: weakly, because a proxy that compresses weakens our ETags.
func hasETag(values []string, etag string) bool {
	for tag := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

// list is GET /v1/jobs: newest first.
func (s *Server) list(c echo.Context) error {
	f := tasks.Filter{
		State:    tasks.State(c.QueryParam("state")),
		Kind:     openai.Kind(c.QueryParam("kind")),
		Upstream: c.QueryParam("upstream"),
		After:    c.QueryParam("after"),
	}
	if f.State != "" && !f.State.Valid() {
		return badField("state", "invalid_value", "%q is not a state; give one of %s", f.State, names(tasks.States()))
	}
	if f.Kind != "" && !f.Kind.Valid() {
		return badField("kind", "invalid_value", "%q is not a kind; give one of %s", f.Kind, names(openai.Kinds()))
	}
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > tasks.MaxPage {
			return badField("limit", "out_of_range", "%q is not a whole number in 1 to %d", text, tasks.MaxPage)
		}
		f.Limit = n
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	page, err := s.queue.List(ctx, f)
	if err != nil {
		return err
	}
	out := listObject{Object: "list", Data: make([]jobObject, len(page.Jobs)), HasMore: page.Next != "", Next: page.Next}
	for i, job := range page.Jobs {
		out.Data[i] = objectOf(job)
	}
	return writeJSON(c, http.StatusOK, out)
}

// cancel is POST /v1/jobs/{id}/cancel.
func (s *Server) cancel(c echo.Context) error { return s.change(c, s.queue.Cancel) }

// retry is POST /v1/jobs/{id}/retry. A job that runs needs room, for its answer at last.
func (s *Server) retry(c echo.Context) error {
	if s.cfg.Full() {
		return storageFull(nil)
	}
	return s.change(c, s.queue.Retry)
}

func (s *Server) change(c echo.Context, do func(context.Context, string) (*tasks.Job, error)) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	job, err := do(ctx, c.Param("id"))
	if err != nil {
		return err
	}
	return s.writeJob(c, job)
}

// remove is DELETE /v1/jobs/{id}.
func (s *Server) remove(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), queueTimeout)
	defer cancel()
	if err := s.queue.Delete(ctx, c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
