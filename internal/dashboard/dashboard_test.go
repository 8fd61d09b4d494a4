package dashboard_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/dashboard"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// start returns a dashboard, and the client of its Redis.
func start(t *testing.T, mode dashboard.Mode) (http.Handler, redis.UniversalClient) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	h, err := dashboard.New(rdb, mode)
	require.NoError(t, err)
	return h, rdb
}

func call(h http.Handler, method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, http.NoBody)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func enqueue(t *testing.T, rdb redis.UniversalClient, id, payload string) {
	t.Helper()
	_, err := asynq.NewClientFromRedisClient(rdb).Enqueue(asynq.NewTask("job", []byte(payload)), asynq.Queue("q"), asynq.TaskID(id))
	require.NoError(t, err)
}

func TestModes(t *testing.T) {
	for mode, valid := range map[dashboard.Mode]bool{dashboard.Off: true, dashboard.ReadOnly: true, dashboard.Full: true, "": false, "open": false} {
		require.Equal(t, valid, mode.Valid(), mode)
	}
	for _, mode := range []dashboard.Mode{dashboard.Off, "", "open"} {
		_, err := dashboard.New(nil, mode)
		require.ErrorContains(t, err, "is not one of readonly, full")
	}
}

func TestReadOnlyOnlyLooks(t *testing.T) {
	for mode, changed := range map[dashboard.Mode]bool{dashboard.ReadOnly: false, dashboard.Full: true} {
		h, rdb := start(t, mode)
		enqueue(t, rdb, "t1", `{}`)
		require.Equal(t, 200, call(h, "GET", "/dashboard/api/queues").Code)
		for _, target := range []string{"POST /dashboard/api/queues/q:pause", "DELETE /dashboard/api/queues/q/pending_tasks/t1"} {
			method, path, _ := strings.Cut(target, " ")
			w := call(h, method, path)
			require.Equal(t, changed, w.Code < 300, "%s in %s: %d", target, mode, w.Code)
		}
		paused, err := rdb.Exists(t.Context(), "asynq:{q}:paused").Result()
		require.NoError(t, err)
		require.Equal(t, changed, paused == 1)
		left, err := rdb.LLen(t.Context(), "asynq:{q}:pending").Result()
		require.NoError(t, err)
		require.Equal(t, changed, left == 0)
	}
}

// A payload of ours is a reference. What another program put there may be anything.
func TestForeignPayloadsStayHidden(t *testing.T) {
	h, rdb := start(t, dashboard.ReadOnly)
	ours := `{"v":1,"job":"job_` + strings.Repeat("0", 32) + `"}`
	enqueue(t, rdb, "ours", ours)
	enqueue(t, rdb, "foreign", `{"prompt":"hunter2"}`)
	enqueue(t, rdb, "long", `{"job":"job_","prompt":"hunter2`+strings.Repeat("x", 100)+`"}`)
	for _, target := range []string{"/dashboard/api/queues/q/pending_tasks", "/dashboard/api/queues/q/tasks/foreign", "/dashboard/api/queues/q/tasks/long"} {
		w := call(h, "GET", target)
		require.Equal(t, 200, w.Code, w.Body)
		require.NotContains(t, w.Body.String(), "hunter2")
		require.Contains(t, w.Body.String(), "[hidden]")
	}
	require.Contains(t, call(h, "GET", "/dashboard/api/queues/q/tasks/ours").Body.String(), "job_000")
}

func TestHeaders(t *testing.T) {
	h, _ := start(t, dashboard.ReadOnly)
	for _, target := range []string{"/dashboard", "/dashboard/", "/dashboard/queues/q", "/dashboard/api/queues"} {
		w := call(h, "GET", target)
		require.Equal(t, 200, w.Code, target)
		require.Contains(t, w.Header().Get("Content-Security-Policy"), "frame-ancestors 'none'")
		require.Equal(t, "DENY", w.Header().Get("X-Frame-Options"))
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		require.Equal(t, "same-origin", w.Header().Get("Referrer-Policy"))
		require.Equal(t, strings.HasPrefix(target, "/dashboard/api/"), w.Header().Get("Cache-Control") == "no-store")
	}
	require.Equal(t, 404, call(h, "GET", "/dashboard/static/js/main.chunk.js.map").Code, "sources of the page are no business of users")
}

func TestOtherSitesChangeNothing(t *testing.T) {
	h, rdb := start(t, dashboard.Full)
	enqueue(t, rdb, "t1", `{}`)
	const pause = "/dashboard/api/queues/q:pause"
	for header, status := range map[string]int{
		"Sec-Fetch-Site: cross-site": 403, "Sec-Fetch-Site: same-site": 403, "Origin: https://evil.example": 403, "Origin: null": 403,
	} {
		require.Equal(t, status, call(h, "POST", pause, header).Code, header)
	}
	paused, err := rdb.Exists(t.Context(), "asynq:{q}:paused").Result()
	require.NoError(t, err)
	require.Zero(t, paused)
	require.Equal(t, 200, call(h, "GET", "/dashboard/api/queues", "Sec-Fetch-Site: cross-site").Code, "a link may lead here")
	require.Equal(t, 204, call(h, "POST", pause, "Sec-Fetch-Site: same-origin").Code)
}

func TestPagesAreCapped(t *testing.T) {
	h, rdb := start(t, dashboard.ReadOnly)
	for i := range 120 {
		enqueue(t, rdb, fmt.Sprintf("t%d", i), `{}`)
	}
	for query, want := range map[string]int{
		"": 20, "?size=5": 5, "?size=100": 100, "?size=101": 100, "?size=1000000000": 100, "?size=99999999999999999999": 20, "?size=x": 20,
		"?size=5&size=1000": 5, "?size=1000&page=2": 20,
	} {
		w := call(h, "GET", "/dashboard/api/queues/q/pending_tasks"+query)
		require.Equal(t, 200, w.Code)
		require.Equal(t, want, strings.Count(w.Body.String(), `"payload":`), query)
	}
}
