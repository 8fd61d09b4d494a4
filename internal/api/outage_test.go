package api_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/logtest"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// watchedBundle is a server put together as cmd/api does it: it knows how its Redis is.
func watchedBundle(t *testing.T) (*bundle, *redisclient.Health) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	server := redistest.Start(t)
	b := &bundle{redis: server, log: &logtest.Buffer{}}
	log := slog.New(redisclient.Quiet(slog.NewJSONHandler(b.log, nil)))
	rdb, health, err := redisclient.OpenWatched(server.URL(), redisclient.HealthConfig{}, log)
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	t.Cleanup(health.Close)
	b.rdb = rdb
	b.Server, err = api.New(api.Config{Upstreams: []string{"main"}, Full: health.Full}, rdb, log)
	require.NoError(t, err)
	return b, health
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 5*time.Second, 5*time.Millisecond, what)
}

func TestAnOutageIsAnsweredAtOnceAndLoggedOnce(t *testing.T) {
	b, health := watchedBundle(t)
	id := b.submit(t, hello)
	before := strings.Count(b.log.String(), "\n")
	require.NoError(t, b.redis.Kill())
	eventually(t, "the outage is noticed", health.Away)
	for range 20 {
		for _, line := range []string{
			"POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/" + id, "GET /v1/jobs/" + id + "?wait=30s", "POST /v1/jobs/" + id + "/cancel",
			"POST /v1/jobs/" + id + "/retry", "DELETE /v1/jobs/" + id, "GET /v1/upstreams", "POST /v1/upstreams/main/open",
		} {
			method, target, _ := strings.Cut(line, " ")
			begun := time.Now()
			w := b.do(method, target, hello)
			require.Less(t, time.Since(begun), 500*time.Millisecond, line)
			e := envelope(t, w, http.StatusServiceUnavailable, "redis_unavailable")
			require.Equal(t, "server_error", e.Type)
			require.Contains(t, e.Message, "Idempotency-Key")
			require.NotContains(t, e.Message, "127.0.0.1")
			require.Equal(t, "2", w.Header().Get("Retry-After"))
		}
	}
	envelope(t, b.do("POST", "/v1/jobs", "{}"), http.StatusBadRequest, "missing_required_parameter")
	require.Equal(t, http.StatusOK, b.do("GET", "/livez", "").Code)
	require.Equal(t, http.StatusOK, b.do("GET", "/metrics", "").Code)
	w := b.do("GET", "/readyz", "")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Contains(t, w.Body.String(), `"redis":"does not answer"`)

	require.NoError(t, b.redis.Restart(t.Context()))
	eventually(t, "it comes back by itself", func() bool { return b.do("POST", "/v1/jobs", hello).Code == http.StatusAccepted })
	require.Equal(t, http.StatusOK, b.do("GET", "/readyz", "").Code)
	log := strings.SplitAfter(b.log.String(), "\n")[before:]
	var rest []string
	for _, line := range log {
		if !strings.Contains(line, `"status":202`) {
			rest = append(rest, line)
		}
	}
	require.Contains(t, strings.Join(rest, ""), `"msg":"redis is away"`)
	require.Contains(t, strings.Join(rest, ""), `"msg":"redis is back"`)
	require.Less(t, len(rest), 6, rest)
}

// What is under way when Redis goes is answered too, soon.
func TestRequestsUnderWayOutliveNoOutage(t *testing.T) {
	for name, stop := range map[string]func(*redisserver.Server) error{"dead": (*redisserver.Server).Kill, "hung": (*redisserver.Server).Pause} {
		t.Run(name, func(t *testing.T) {
			b, _ := watchedBundle(t)
			t.Cleanup(func() { _ = b.redis.Resume() }) // a dead one does not mind
			id := b.submit(t, hello)
			base, _ := b.run(t)
			var all sync.WaitGroup
			for _, wait := range []string{"1s", "30s"} {
				all.Go(func() {
					resp, err := http.Get(base + "/v1/jobs/" + id + "?wait=" + wait)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "redis_unavailable") {
						t.Errorf("wait=%s: %d %s", wait, resp.StatusCode, body)
					}
				})
			}
			eventually(t, "they wait", func() bool {
				n, err := b.rdb.PubSubNumSub(t.Context(), "ferry:state:"+id).Result()
				return err == nil && n["ferry:state:"+id] > 0
			})
			begun := time.Now()
			require.NoError(t, stop(b.redis))
			w := b.do("POST", "/v1/jobs", hello)
			envelope(t, w, http.StatusServiceUnavailable, "redis_unavailable")
			require.Less(t, time.Since(begun), 3*time.Second)
			all.Wait()
			require.Less(t, time.Since(begun), 5*time.Second, "a look every 2s, and 2s for it")
		})
	}
}

func TestAFullRedisRefusesNewWorkAndServesTheRest(t *testing.T) {
	b, health := watchedBundle(t)
	id, other := b.submit(t, hello), b.submit(t, hello)
	require.Equal(t, http.StatusOK, b.do("POST", "/v1/jobs/"+other+"/cancel", "").Code)
	ctx := t.Context()
	require.NoError(t, b.rdb.Set(ctx, "ballast", strings.Repeat("x", 20<<20), 0).Err())
	require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "24mb").Err())
	eventually(t, "it is seen", health.Full)
	for _, target := range []string{"/v1/jobs", "/v1/jobs/" + other + "/retry"} {
		w := b.do("POST", target, hello)
		require.Contains(t, envelope(t, w, http.StatusInsufficientStorage, "storage_full").Message, "maxmemory")
		require.Equal(t, "10", w.Header().Get("Retry-After"))
	}
	w := b.do("GET", "/readyz", "")
	require.Equal(t, http.StatusOK, w.Code, "what is stored can be read")
	require.Contains(t, w.Body.String(), `"memory":"full: new jobs are refused"`)
	require.Equal(t, http.StatusOK, b.do("GET", "/v1/jobs/"+id, "").Code)
	require.Equal(t, http.StatusOK, b.do("GET", "/v1/jobs", "").Code)
	require.Equal(t, http.StatusOK, b.do("POST", "/v1/jobs/"+id+"/cancel", "").Code)
	require.Equal(t, http.StatusNoContent, b.do("DELETE", "/v1/jobs/"+id, "").Code)

	require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "100mb").Err())
	eventually(t, "it has room again", func() bool { return b.do("POST", "/v1/jobs", hello).Code == http.StatusAccepted })
	require.Equal(t, 1, strings.Count(b.log.String(), "redis is nearly full"))
	require.NotContains(t, b.log.String(), `"level":"ERROR"`, "a refusal is no failure")
}

// Memory may run out between two looks at it.
func TestAJobThatRedisHasNoRoomForLeavesNothing(t *testing.T) {
	b := newBundle(t, nil)
	ctx := t.Context()
	require.NoError(t, b.rdb.Set(ctx, "ballast", strings.Repeat("x", 1<<20), 0).Err())
	require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "1mb").Err())
	w := b.do("POST", "/v1/jobs", hello, "Idempotency-Key: k")
	envelope(t, w, http.StatusInsufficientStorage, "storage_full")
	require.Equal(t, []string{"ballast"}, b.keys(t))
	require.NoError(t, b.rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	w = b.do("POST", "/v1/jobs", hello, "Idempotency-Key: k")
	require.Equal(t, http.StatusAccepted, w.Code)
	require.Empty(t, w.Header().Get("Idempotent-Replayed"), "the refused one left nothing")
}

func TestStrictSaysWhatIsNotKnownToBeOnDisk(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.Jobs.Durability = tasks.Strict })
	w := b.do("POST", "/v1/jobs", hello, "Idempotency-Key: k")
	e := envelope(t, w, http.StatusServiceUnavailable, "durability_unconfirmed")
	require.Regexp(t, `^Job job_[0-9a-f]{32} is stored and may run, .*appendfsync no.*the same Idempotency-Key\.$`, e.Message)
	require.Equal(t, "2", w.Header().Get("Retry-After"))
	require.NoError(t, b.rdb.ConfigSet(t.Context(), "appendfsync", "always").Err())
	w = b.do("POST", "/v1/jobs", hello, "Idempotency-Key: k")
	require.Equal(t, http.StatusAccepted, w.Code)
	require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
	require.Contains(t, e.Message, fieldOf(t, w, "id"))
}
