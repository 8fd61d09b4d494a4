package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// newServer returns a server whose Redis is not there: what these tests ask needs none.
func newServer(t *testing.T, log io.Writer) *Server {
	t.Helper()
	rdb, err := redisclient.Open("redis://127.0.0.1:1")
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := New(Config{Upstreams: []string{"main"}}, rdb, slog.New(slog.NewJSONHandler(log, nil)))
	require.NoError(t, err)
	return s
}

func serve(s *Server, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(method, target, http.NoBody))
	return w
}

// A panic is our mistake: the client learns where to look, the log gets the stack, and both have one ID.
func TestAPanicIsAnswered(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, &log)
	s.echo.GET("/boom", func(echo.Context) error { panic("hunter2") })
	s.echo.GET("/gone", func(echo.Context) error { panic(http.ErrAbortHandler) })
	w := serve(s, http.MethodGet, "/boom")
	require.Equal(t, http.StatusInternalServerError, w.Code)
	var e openai.Envelope
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &e))
	require.Equal(t, "internal_error", *e.Error.Code)
	require.NotContains(t, w.Body.String(), "hunter2")
	id := w.Header().Get("X-Request-Id")
	require.Contains(t, e.Error.Message, id)
	require.Contains(t, log.String(), `"request_id":"`+id+`","panic":"hunter2","stack":"goroutine `)
	require.Contains(t, log.String(), "TestAPanicIsAnswered", "the stack shows the place")
	require.Panics(t, func() { serve(s, http.MethodGet, "/gone") }, "net/http's own way to cut a connection")
}

func TestMetricsPassTheLinter(t *testing.T) {
	s := newServer(t, io.Discard)
	s.metrics.accepted.WithLabelValues("chat", "main").Inc()
	serve(s, http.MethodGet, "/livez")
	families, err := s.metrics.registry.Gather()
	require.NoError(t, err)
	ours := families[:0]
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "ferry_") {
			ours = append(ours, f)
		}
	}
	require.Len(t, ours, 2)
	problems, err := promlint.NewWithMetricFamilies(ours).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

// Whatever clients send, the number of series is bounded.
func TestLabelsAreEnums(t *testing.T) {
	s := newServer(t, io.Discard)
	for _, target := range []string{"/v1/jobs/job_1", "/v1/jobs/job_2", "/nowhere/1", "/v1/nowhere/2", "/v1/jobs?limit=1", "/v1/jobs/a/b/c", "/livez", "/dashboard/x", "/"} {
		for _, method := range []string{"GET", "BREW", "PROPFIND", "HEAD"} {
			if method == "GET" && strings.HasPrefix(target, "/v1/jobs") {
				continue // asks Redis
			}
			serve(s, method, target)
		}
	}
	routes := []string{"unknown"}
	for _, r := range s.echo.Routes() {
		routes = append(routes, r.Path)
	}
	text := serve(s, http.MethodGet, "/metrics").Body.String()
	lines := regexp.MustCompile(`ferry_http_request_duration_seconds_count\{code="(\d+)",method="([^"]*)",route="([^"]*)"\}`).FindAllStringSubmatch(text, -1)
	require.NotEmpty(t, lines)
	for _, line := range lines {
		require.Contains(t, []string{"GET", "HEAD", "other"}, line[2])
		require.True(t, slices.Contains(routes, line[3]) || line[3] == "/v1", line[0])
	}
}

func parse(body string, now time.Time) (tasks.Submission, error) {
	return parseSubmission([]byte(body), "", []string{"main", "other"}, tasks.Config{}.WithDefaults(), now)
}

// FuzzParseSubmission looks for a body that breaks the reader, is refused without a field, or is changed.
func FuzzParseSubmission(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `{}`, `{"kind":"chat","request":{"model":"m","messages":[{}]}}`, `{"kind":"generate","request":{"model":"m","prompt":"x"},"delay":"5s"}`,
		`{"kind":"embeddings","request":{ "input":[1] , "model":"m"},"run_at":"2030-01-31T15:00:00Z","metadata":{"a":"b"},"max_attempts":3,"priority":"low"}`,
		`{"kind":"chat","request":null,"retention":"1h","expires_in":"-5s"}`,
	} {
		f.Add(seed)
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, body string) {
		sub, err := parse(body, now)
		if err != nil {
			e := errorOf(err, "")
			require.Equal(t, http.StatusBadRequest, e.Status, err)
			require.NotEmpty(t, e.Code)
			require.Less(t, len(e.Message), 1100)
			// Only a field without a name has no name.
			require.True(t, e.Param != "" || strings.Contains(body, `""`) || e.Code == "unknown_field", "%q: %v", body, err)
			return
		}
		var whole struct{ Request json.RawMessage }
		require.NoError(t, json.Unmarshal([]byte(body), &whole))
		require.Contains(t, body, string(sub.Request), "byte for byte")
		require.True(t, sub.Kind.Valid() && sub.Priority.Valid())
		require.Contains(t, []string{"main", "other"}, sub.Upstream)
		require.NotEmpty(t, sub.Model)
		require.Len(t, sub.Hash, 32)
		require.True(t, sub.RunAt.IsZero() || !sub.RunAt.Before(now))
	})
}

func TestRunAt(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for field, want := range map[string]time.Time{
		`"delay":"90s"`:                        now.Add(90 * time.Second),
		`"delay":"0s"`:                         {},
		`"run_at":"2030-01-01T14:00:00+01:00"`: now.Add(time.Hour),
		`"run_at":"2029-01-01T00:00:00Z"`:      {},
		`"priority":"low"`:                     {},
	} {
		sub, err := parse(`{"kind":"chat","request":{"model":"m","messages":[{}]},`+field+`}`, now)
		require.NoError(t, err)
		require.True(t, want.Equal(sub.RunAt), "%s: %s", field, sub.RunAt)
	}
}

type redisReply string

func (r redisReply) Error() string { return string(r) }
func (redisReply) RedisError()     {}

func TestErrorOfIsTotal(t *testing.T) {
	tests := []struct {
		err    error
		status int
		code   string
	}{
		{badField("a", "b", "c"), 400, "b"},
		{&openai.FieldError{Param: "p", Code: "c", Message: "m"}, 400, "c"},
		{tasks.ErrNotFound, 404, "job_not_found"},
		{tasks.ErrCursor, 400, "invalid_cursor"},
		{&tasks.StateError{ID: "j", State: tasks.Succeeded, Want: "retry"}, 409, "job_succeeded"},
		{&tasks.KeyReuseError{ID: "j"}, 422, "idempotency_key_reused"},
		{&tasks.UnreadableError{ID: "j", Field: "result"}, 500, "record_damaged"},
		{echo.ErrNotFound, 404, "unknown_url"},
		{echo.ErrMethodNotAllowed, 405, "method_not_allowed"},
		{echo.ErrUnsupportedMediaType, 415, "http_415"},
		{&echo.HTTPError{Code: 200}, 500, "http_500"},
		{&tasks.UnconfirmedError{ID: "j", Reason: "r"}, 503, "durability_unconfirmed"},
		{fmt.Errorf("tasks: %w", redisReply("OOM command not allowed when used memory > 'maxmemory'.")), 507, "storage_full"},
		{redisReply("ERR Error running script (call to f_1): @user_script:5: @user_script: 5: -OOM command not allowed when used memory > 'maxmemory'."), 507, "storage_full"},
		{redisReply("MISCONF Errors writing to the AOF file: No space left on device"), 503, "redis_unavailable"},
		{errors.New("redis: hunter2"), 503, "redis_unavailable"},
		{io.EOF, 503, "redis_unavailable"},
	}
	for _, tt := range tests {
		e := errorOf(tt.err, "j")
		require.Equal(t, tt.status, e.Status, tt.err)
		require.Equal(t, tt.code, e.Code)
		require.NotEmpty(t, e.Message)
		require.NotContains(t, e.Message, "hunter2")
	}
	require.Contains(t, errorOf(&tasks.StateError{State: tasks.Succeeded, Want: "retry"}, "").Message, "it has its answer")
	require.ErrorIs(t, errorOf(io.EOF, ""), io.EOF, "the cause is for the log")
}
