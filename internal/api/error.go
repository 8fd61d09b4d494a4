package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// Error is a reply other than success, in OpenAI's envelope: SDKs show the code and type of no other form.
type Error struct {
	Status     int
	Type       string // "invalid_request_error", "server_error", ...
	Code       string
	Param      string // the field or header at fault; empty: none
	Message    string // names the field and the fix
	RetryAfter time.Duration
	cause      error // for the log, never for the client
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap is what went wrong inside, if anything did.
func (e *Error) Unwrap() error { return e.cause }

const (
	invalidRequest = "invalid_request_error"
	serverError    = "server_error"
)

// badField is about one field. What it repeats of the client's own text is bounded: a field's name may be as
// long as the body.
func badField(param, code, format string, args ...any) *Error {
	param = cut(param, 100)
	return &Error{
		Status: http.StatusBadRequest, Type: invalidRequest, Code: code, Param: param,
		Message: cut(param+": "+fmt.Sprintf(format, args...), 1000),
	}
}

// cut shortens s to at most n bytes and a mark, at a character's boundary.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

const (
	// unavailableFor is how long a client should wait when Redis does not answer.
	unavailableFor = 2 * time.Second
	// fullFor is how long it should wait for room: answers are fetched and deleted, jobs end.
	fullFor = 10 * time.Second
)

// errorOf turns any error of a handler into a reply.
func errorOf(err error, id string) *Error {
	var (
		reply    *Error
		field    *openai.FieldError
		state    *tasks.StateError
		locked   *tasks.UnreadableError
		reuse    *tasks.KeyReuseError
		unsure   *tasks.UnconfirmedError
		fromEcho *echo.HTTPError
	)
	switch {
	case errors.As(err, &reply):
		return reply
	case errors.As(err, &field):
		return &Error{Status: http.StatusBadRequest, Type: invalidRequest, Code: field.Code, Param: field.Param, Message: field.Message}
	case errors.Is(err, tasks.ErrNotFound):
		return &Error{
			Status: http.StatusNotFound, Type: invalidRequest, Code: "job_not_found", Param: "id",
			Message: fmt.Sprintf("id: there is no job %q; it never was, or its retention is over.", id),
		}
	case errors.As(err, &state):
		return &Error{
			Status: http.StatusConflict, Type: invalidRequest, Code: "job_" + string(state.State), Param: "id",
			Message: fmt.Sprintf("id: job %s is %s: %s.", state.ID, state.State, remedy(state)),
		}
	case errors.As(err, &reuse):
		return &Error{
			Status: http.StatusUnprocessableEntity, Type: invalidRequest, Code: "idempotency_key_reused", Param: "Idempotency-Key",
			Message: fmt.Sprintf("Idempotency-Key: job %s has this key and another body; use a new key for a new request.", reuse.ID),
		}
	case errors.As(err, &locked):
		return &Error{
			Status: http.StatusInternalServerError, Type: serverError, Code: locked.Reason(),
			Message: fmt.Sprintf("The %s of job %s cannot be read: %s.", locked.Field, locked.ID, remedyFor(locked)), cause: err,
		}
	case errors.Is(err, tasks.ErrCursor):
		return badField("after", "invalid_cursor", "is not a cursor of this list; give the next of the page before")
	case errors.As(err, &unsure):
		return &Error{
			Status: http.StatusServiceUnavailable, Type: serverError, Code: "durability_unconfirmed",
			Message: fmt.Sprintf("Job %s is stored and may run, but it is not certain that it would outlive a power failure: %s. "+
				"Send the request again with the same Idempotency-Key.", unsure.ID, unsure.Reason),
			RetryAfter: unavailableFor, cause: err,
		}
	case isFull(err):
		return storageFull(err)
	case errors.As(err, &fromEcho):
		return errorOfEcho(fromEcho)
	default:
		return &Error{
			Status: http.StatusServiceUnavailable, Type: serverError, Code: "redis_unavailable",
			Message: "Ferry's Redis does not answer. Whether this request took effect is not known: send it again later, " +
				"a submission with the same Idempotency-Key.",
			RetryAfter: unavailableFor, cause: err,
		}
	}
}

// storageFull refuses what would need room in Redis.
func storageFull(cause error) *Error {
	return &Error{
		Status: http.StatusInsufficientStorage, Type: serverError, Code: "storage_full",
		Message: "Ferry's Redis is full, and this request has stored nothing. Try again later; " +
			"deleting ended jobs makes room, and so does raising maxmemory.",
		RetryAfter: fullFor, cause: cause,
	}
}

// isFull reports whether Redis refused a write for want of memory. Until 6.2 it puts that inside another
// error when a script is refused.
func isFull(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && (redis.IsOOMError(reply) || strings.Contains(reply.Error(), "-OOM command not allowed"))
}

// causeOf is what went wrong inside, if anything did: the rest is the client's to know.
func causeOf(err error) error {
	if err == nil {
		return nil
	}
	return errorOf(err, "").cause
}

func remedy(e *tasks.StateError) string {
	switch {
	case !e.State.Terminal():
		return "cancel it first, or wait for its end"
	case e.Want == "retry":
		return "it has its answer"
	default:
		return "it has ended"
	}
}

func remedyFor(e *tasks.UnreadableError) string {
	if key := e.Key(); key != "" {
		return fmt.Sprintf("it is encrypted with the key %q, which this server does not have; add it to encryption.keys", key)
	}
	return "another version of Ferry wrote it, or it is damaged; the server's log has the cause"
}

// errorOfEcho covers what the router answers itself: unknown path, wrong method.
func errorOfEcho(e *echo.HTTPError) *Error {
	switch e.Code {
	case http.StatusNotFound:
		return &Error{Status: e.Code, Type: invalidRequest, Code: "unknown_url", Message: "There is nothing at this path."}
	case http.StatusMethodNotAllowed:
		return &Error{Status: e.Code, Type: invalidRequest, Code: "method_not_allowed", Message: "This path does not take this method."}
	default:
		code := e.Code
		if code < 400 {
			code = http.StatusInternalServerError
		}
		return &Error{Status: code, Type: serverError, Code: "http_" + strconv.Itoa(code), Message: http.StatusText(code) + ".", cause: e}
	}
}

// writeError is echo's error handler.
func (s *Server) writeError(err error, c echo.Context) {
	ctx := c.Request().Context()
	if c.Response().Committed || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return // the reply has begun, or nobody is left to read it
	}
	e := errorOf(err, c.Param("id"))
	if e.RetryAfter > 0 {
		c.Response().Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter.Seconds())))
	}
	body := openai.Envelope{Error: openai.ErrorBody{Message: e.Message, Type: e.Type, Code: &e.Code}}
	if e.Param != "" {
		body.Error.Param = &e.Param
	}
	if err := writeJSON(c, e.Status, body); err != nil {
		s.log.LogAttrs(ctx, slog.LevelDebug, "reply not written", slog.Any("error", err))
	}
}
