package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// Bounds on what a client may ask for.
const (
	maxDelay         = 30 * 24 * time.Hour
	maxExpiresIn     = 30 * 24 * time.Hour
	maxKeyLength     = 255 // of an Idempotency-Key, as common APIs have it
	maxMetadata      = 16  // pairs; with the two below as in OpenAI's metadata
	maxMetadataKey   = 64
	maxMetadataValue = 512
)

// submission reads the body of POST /v1/jobs.
type submission struct {
	fields map[string]json.RawMessage
	err    error // the first problem
}

// submissionFields are the fields a client may give, in the order of the documentation.
var submissionFields = []string{
	"kind", "request", "upstream", "priority", "delay", "run_at", "expires_in", "max_attempts", "retention", "metadata",
}

// parseSubmission turns the body of POST /v1/jobs into a submission. upstreams are the names that may be
// given; the first is the default. Every problem names its field: it is an *[Error], or an
// *[openai.FieldError] for a field of the request.
func parseSubmission(body []byte, key string, upstreams []string, limits tasks.Config, now time.Time) (tasks.Submission, error) {
	s := &submission{}
	if err := json.Unmarshal(body, &s.fields); err != nil || s.fields == nil {
		return tasks.Submission{}, notAnObject(body, err)
	}
	maps.DeleteFunc(s.fields, func(_ string, raw json.RawMessage) bool { return string(raw) == "null" }) // as good as absent
	for _, name := range slices.Sorted(maps.Keys(s.fields)) {
		if !slices.Contains(submissionFields, name) {
			return tasks.Submission{}, badField(name, "unknown_field", "is not a field of a job; the fields are %s", strings.Join(submissionFields, ", "))
		}
	}
	sub := tasks.Submission{
		Kind:        openai.Kind(s.text("kind")),
		Upstream:    s.text("upstream"),
		Priority:    tasks.Priority(s.text("priority")),
		Request:     s.fields["request"],
		ExpiresIn:   s.duration("expires_in", time.Second, maxExpiresIn),
		Retention:   s.duration("retention", time.Second, limits.MaxRetention),
		MaxAttempts: s.count("max_attempts", tasks.AttemptsLimit),
		Metadata:    s.metadata(),
		RunAt:       s.runAt(now),
		Key:         key,
		Hash:        hash(body),
	}
	if s.err != nil {
		return tasks.Submission{}, s.err
	}
	return checkSubmission(sub, upstreams)
}

func checkSubmission(sub tasks.Submission, upstreams []string) (tasks.Submission, error) {
	if !sub.Kind.Valid() {
		if sub.Kind == "" {
			return sub, badField("kind", "missing_required_parameter", "is missing; give one of %s", names(openai.Kinds()))
		}
		return sub, badField("kind", "invalid_value", "%q is not a kind; give one of %s", sub.Kind, names(openai.Kinds()))
	}
	if sub.Upstream == "" {
		sub.Upstream = upstreams[0]
	}
	if !slices.Contains(upstreams, sub.Upstream) {
		return sub, badField("upstream", "unknown_upstream", "%q is not configured; give one of %s", sub.Upstream, strings.Join(upstreams, ", "))
	}
	if sub.Priority == "" {
		sub.Priority = tasks.Normal
	}
	if !sub.Priority.Valid() {
		return sub, badField("priority", "invalid_value", "%q is not a priority; give one of %s", sub.Priority, names(tasks.Priorities()))
	}
	model, err := openai.Check(sub.Kind, sub.Request, "request.")
	if err != nil {
		return sub, err
	}
	if openai.Streams(sub.Request) {
		return sub, badField("request.stream", "unsupported_value", "a job's answer is stored, not streamed; leave stream out and poll or wait for the job")
	}
	sub.Model = model
	return sub, nil
}

func notAnObject(body []byte, err error) *Error {
	if len(bytes.TrimSpace(body)) == 0 {
		return badField("body", "missing_body", `is empty; send a JSON object such as {"kind":"chat","request":{…}}`)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return badField("body", "invalid_json", "is not valid JSON at byte %d: %v", syntax.Offset, syntax)
	}
	return badField("body", "invalid_type", `must be a JSON object such as {"kind":"chat","request":{…}}`)
}

func (s *submission) fail(e *Error) {
	if s.err == nil {
		s.err = e
	}
}

// decode reads a field into v and reports whether it is there and good.
func (s *submission) decode(name string, v any, want string) bool {
	raw, ok := s.fields[name]
	if !ok {
		return false
	}
	if json.Unmarshal(raw, v) != nil {
		s.fail(badField(name, "invalid_type", "must be %s", want))
		return false
	}
	return true
}

func (s *submission) text(name string) (v string) {
	s.decode(name, &v, "a string")
	return v
}

func (s *submission) count(name string, most int) (n int) {
	if s.decode(name, &n, "a whole number") && (n < 1 || n > most) {
		s.fail(badField(name, "out_of_range", "%d is not in 1 to %d", n, most))
	}
	return n
}

func (s *submission) duration(name string, least, most time.Duration) time.Duration {
	var v string
	if !s.decode(name, &v, `a duration in quotes such as "30s", "5m" or "24h"`) {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		s.fail(badField(name, "invalid_duration", `%q is not a duration; write it as "30s", "5m" or "24h"`, v))
		return 0
	}
	if d < least || d > most {
		s.fail(badField(name, "out_of_range", "%s is not in %s to %s", v, least, most))
	}
	return d
}

func (s *submission) runAt(now time.Time) time.Time {
	delay := s.duration("delay", 0, maxDelay)
	var v string
	if !s.decode("run_at", &v, `a time in quotes such as "2030-01-31T15:00:00Z"`) {
		if delay == 0 {
			return time.Time{}
		}
		return now.Add(delay)
	}
	at, err := time.Parse(time.RFC3339, v)
	switch {
	case err != nil:
		s.fail(badField("run_at", "invalid_time", `%q is not an RFC 3339 time; write it as "2030-01-31T15:00:00Z"`, v))
	case s.fields["delay"] != nil:
		s.fail(badField("run_at", "conflicting_fields", "goes without delay; give one of the two"))
	case at.After(now.Add(maxDelay)):
		s.fail(badField("run_at", "out_of_range", "%s is more than %s ahead", v, maxDelay))
	case at.Before(now):
		return time.Time{}
	}
	return at.UTC()
}

func (s *submission) metadata() (m map[string]string) {
	if !s.decode("metadata", &m, "an object whose values are strings") {
		return nil
	}
	if len(m) > maxMetadata {
		s.fail(badField("metadata", "out_of_range", "has %d pairs; the most is %d", len(m), maxMetadata))
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k == "" || len(k) > maxMetadataKey || len(m[k]) > maxMetadataValue {
			s.fail(badField("metadata", "out_of_range", "keys have 1 to %d bytes and values at most %d; %.70q does not fit", maxMetadataKey, maxMetadataValue, k))
			break
		}
	}
	return m
}

// idempotencyKey reads the header of that name: draft-ietf-httpapi-idempotency-key-header.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	if len(values) > 1 || key == "" || len(key) > maxKeyLength {
		return "", badField("Idempotency-Key", "invalid_value", "must be given once, with 1 to %d characters", maxKeyLength)
	}
	for _, r := range key {
		if r < 0x20 || r == 0x7f {
			return "", badField("Idempotency-Key", "invalid_value", "must have no control characters")
		}
	}
	return key, nil
}

// readBody reads a request body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &Error{
			Status: http.StatusRequestEntityTooLarge, Type: invalidRequest, Code: "body_too_large", Param: "body",
			Message: "body: is larger than " + size(limit) + "; send less, or raise api.max_body.",
		}
	}
	if err != nil {
		return nil, badField("body", "incomplete_body", "could not be read to its end")
	}
	return body, nil
}

func hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:16])
}

func names[T ~string](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = string(v)
	}
	return strings.Join(texts, ", ")
}
