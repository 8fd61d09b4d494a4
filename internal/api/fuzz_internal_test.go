package api

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/dashboard"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
)

const bearer = "sk-hunter2-0123456789abcdef"

// FuzzRequest looks for a request that is answered with anything but success or a refusal in the envelope, while Redis
// is well; and for one whose credentials come back or are logged.
func FuzzRequest(f *testing.F) {
	for _, seed := range []struct{ method, target, body, name, value string }{
		{"POST", "/v1/jobs", `{"kind":"chat","request":{"model":"m","messages":[{}]},"delay":"5s"}`, "Idempotency-Key", "order-17"},
		{"POST", "/v1/jobs", `{"kind":"embeddings","request":{"model":"m","input":[1]},"run_at":"2030-01-31T15:00:00Z","priority":"low"}`, "X-Request-Id", "r-1"},
		{"POST", "/v1/jobs", `{"kind":"chat","request":{"model":"m","prompt":1},"expires_in":"1h","retention":"9223372036854775807ns"}`, "Content-Encoding", "gzip"},
		{"GET", "/v1/jobs?state=failed&kind=chat&upstream=main&limit=7&after=zik0zj.job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b", "", "Accept", "*/*"},
		{"GET", "/v1/jobs?after=-1y2p0ij32e8e8.job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b", "", "", ""},
		{"GET", "/v1/jobs/job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b?wait=1s", "", "If-None-Match", `W/"x", *`},
		{"POST", "/v1/jobs/job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b/cancel", "", "X-Forwarded-For", "10.0.0.1, x"},
		{"DELETE", "/v1/jobs/%6aob_", "", "Host", "x"},
		{"POST", "/v1/upstreams/main/open", "", "", ""},
		{"PATCH", "/v1/upstreams/%2e%2e/x", "", "Content-Length", "-1"},
		{"GET", "/readyz?verbose", "", "", ""},
		{"GET", "/metrics", "", "Accept", "application/openmetrics-text"},
	} {
		f.Add(seed.method, seed.target, seed.body, seed.name, seed.value)
	}
	m := miniredis.RunT(f)
	rdb, err := redisclient.Open("redis://" + m.Addr())
	require.NoError(f, err)
	f.Cleanup(func() { _ = rdb.Close() })
	var log bytes.Buffer
	cfg := Config{Upstreams: []string{"main", "other"}, Dashboard: dashboard.Off, MaxBody: 4096}
	s, err := New(cfg, rdb, slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(f, err)

	f.Fuzz(func(t *testing.T, method, target, body, name, value string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") || len(target) > 4096 {
			return // net/http refuses it
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://ferry", strings.NewReader(body))
		if err != nil {
			return
		}
		r.URL, r.RequestURI = u, target
		if name != "" {
			r.Header[http.CanonicalHeaderKey(name)] = []string{value}
		}
		r.Header.Set("Authorization", "Bearer "+bearer)
		log.Reset()
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		checkReply(t, r, w)
		require.NotContains(t, log.String(), bearer)
		m.FlushAll()
	})
}

func checkReply(t *testing.T, r *http.Request, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.String()
	for name, values := range w.Header() {
		require.NotContains(t, strings.Join(values, " "), bearer, name)
	}
	require.NotContains(t, body, bearer)
	require.NotEmpty(t, w.Header().Get("X-Request-Id"))
	require.Less(t, w.Code, 500, body)
	require.GreaterOrEqual(t, w.Code, 200)
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && r.Method != http.MethodHead {
		require.True(t, json.Valid(w.Body.Bytes()), body)
		require.True(t, utf8.ValidString(body), "%q", body)
	}
	if w.Code < 400 {
		return
	}
	var e openai.Envelope
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &e), body)
	require.NotEmpty(t, e.Error.Message)
	require.NotEmpty(t, e.Error.Type)
	require.NotEmpty(t, *e.Error.Code)
	require.Less(t, len(e.Error.Message), 2000)
}
