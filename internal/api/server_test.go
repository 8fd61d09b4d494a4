package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/logtest"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

func TestMain(m *testing.M) {
	redisclient.LogTo(slog.New(slog.DiscardHandler))
	m.Run()
}

// bundle is a server of one test, on a Redis of its own.
type bundle struct {
	*api.Server
	redis *redisserver.Server
	rdb   redis.UniversalClient
	log   *logtest.Buffer
}

func newBundle(t *testing.T, change func(*api.Config)) *bundle {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	server := redistest.Start(t)
	rdb, err := redisclient.Open(server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	cfg := api.Config{Upstreams: []string{"main", "other"}, Version: "v1.2.3"}
	if change != nil {
		change(&cfg)
	}
	log := &logtest.Buffer{}
	s, err := api.New(cfg, rdb, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	return &bundle{Server: s, redis: server, rdb: rdb, log: log}
}

// do makes a request. Headers are "Name: value".
func (b *bundle) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	b.Handler().ServeHTTP(w, r)
	return w
}

// run serves on a port until stop is called, which returns what Run did.
func (b *bundle) run(t *testing.T) (baseURL string, stop func() error) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx, ln) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return "http://" + ln.Addr().String(), stop
}

const hello = `{"kind":"chat","request":{"model":"m","messages":[{"role":"user","content":"Hello"}]}}`

// submit hands a job in and returns its ID.
func (b *bundle) submit(t *testing.T, body string) string {
	t.Helper()
	w := b.do("POST", "/v1/jobs", body)
	require.Equal(t, 202, w.Code, w.Body)
	return fieldOf(t, w, "id")
}

// fieldOf is a text at the top of a JSON reply.
func fieldOf(t *testing.T, w *httptest.ResponseRecorder, name string) string {
	t.Helper()
	var object map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &object), w.Body)
	text, _ := object[name].(string)
	return text
}

// envelope checks that a reply is an error in OpenAI's form and returns it.
func envelope(t *testing.T, w *httptest.ResponseRecorder, status int, code string) openai.ErrorBody {
	t.Helper()
	require.Equal(t, status, w.Code, w.Body)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	dec.DisallowUnknownFields()
	var e openai.Envelope
	require.NoError(t, dec.Decode(&e))
	require.NotNil(t, e.Error.Code)
	require.Equal(t, code, *e.Error.Code, w.Body)
	require.NotEmpty(t, e.Error.Message)
	require.NotEmpty(t, e.Error.Type)
	return e.Error
}

func (b *bundle) keys(t *testing.T) []string {
	t.Helper()
	keys, err := b.rdb.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	return keys
}

func TestConfigIsValidated(t *testing.T) {
	err := api.Config{MaxBody: 1, MaxWait: time.Millisecond}.WithDefaults().Validate()
	for _, want := range []string{"api.max_body: 1", "api.max_wait: 1ms", "upstreams: none"} {
		require.ErrorContains(t, err, want)
	}
	_, newErr := api.New(api.Config{MaxBody: 1, MaxWait: time.Millisecond}, nil, nil)
	require.EqualError(t, newErr, err.Error())
	require.NoError(t, api.Config{Upstreams: []string{"a"}}.WithDefaults().Validate())
}

func TestUnknownPathsAndMethodsGetTheEnvelope(t *testing.T) {
	b := newBundle(t, nil)
	for _, target := range []string{"/", "/v1", "/v2/jobs", "/v1/jobs/x/y", "/v1/jobs/", "/metrics/x", "/%2e%2e/etc"} {
		envelope(t, b.do("GET", target, ""), 404, "unknown_url")
	}
	for _, line := range []string{"PUT /v1/jobs", "PATCH /v1/jobs/x", "GET /v1/jobs/x/cancel", "DELETE /v1/jobs", "POST /livez"} {
		method, target, _ := strings.Cut(line, " ")
		w := b.do(method, target, "")
		envelope(t, w, 405, "method_not_allowed")
		require.NotEmpty(t, w.Header().Get("Allow"), "RFC 9110 §15.5.6")
	}
}

func TestRequestIDIsKeptOrReplaced(t *testing.T) {
	b := newBundle(t, nil)
	for id, kept := range map[string]bool{
		"req-1": true, "a/b+c=.:_-": true, strings.Repeat("x", 128): true,
		"": false, "two words": false, "quote\"": false, "ü": false, strings.Repeat("x", 129): false, "line\tbreak": false,
	} {
		got := b.do("GET", "/livez", "", "X-Request-Id: "+id).Header().Get("X-Request-Id")
		require.Equal(t, kept, got == id, "%q became %q", id, got)
		require.NotEmpty(t, got)
	}
}

func TestTheAccessLogHasNoSecretAndNoBody(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.DashboardKey = "hunter2-dashboard" })
	b.do("POST", "/v1/jobs?token=hunter2-query", strings.Replace(hello, "Hello", "hunter2-prompt", 1), "Authorization: Bearer hunter2-key",
		"Idempotency-Key: hunter2-idem", "X-Request-Id: req-7", "Cookie: hunter2-cookie")
	b.do("POST", "/v1/jobs", `{"hunter2-field":1}`)
	b.do("GET", "/dashboard/", "", "Authorization: Bearer hunter2-wrong")
	log := b.log.String()
	require.NotContains(t, log, "hunter2")
	first, _, _ := strings.Cut(log, "\n")
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(first), &line))
	require.Equal(t, "request", line["msg"])
	require.Equal(t, []any{"req-7", "POST", "/v1/jobs", 202.0}, []any{line["request_id"], line["method"], line["path"], line["status"]})
}

// A client on the Internet may write what it likes into X-Forwarded-For.
func TestTheLoggedAddressCannotBeForged(t *testing.T) {
	b := newBundle(t, nil)
	b.do("GET", "/v1/jobs", "", "X-Forwarded-For: 6.6.6.6", "X-Real-Ip: 6.6.6.6") // httptest's client is 192.0.2.1
	require.Contains(t, b.log.String(), `"remote":"192.0.2.1"`)
}

func TestProbesAndScrapesAreNotLoggedAsRequests(t *testing.T) {
	b := newBundle(t, nil)
	for _, target := range []string{"/livez", "/readyz", "/healthz", "/metrics", "/dashboard"} {
		b.do("GET", target, "")
	}
	require.NotContains(t, b.log.String(), `"level":"INFO"`)
}

func TestHealth(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.Volatile = true })
	for _, target := range []string{"/livez", "/readyz", "/healthz"} {
		w := b.do("GET", target, "")
		require.Equal(t, 200, w.Code)
		require.Equal(t, "ok", fieldOf(t, w, "status"))
		require.Equal(t, "v1.2.3", fieldOf(t, w, "version"))
		require.Contains(t, w.Body.String(), `"durable":false`)
	}
	require.NoError(t, b.redis.Pause())
	t.Cleanup(func() { _ = b.redis.Resume() })
	for _, target := range []string{"/readyz", "/healthz"} {
		begun := time.Now()
		w := b.do("GET", target, "")
		require.Equal(t, 503, w.Code)
		require.Contains(t, w.Body.String(), `"redis":"does not answer"`)
		require.Contains(t, w.Body.String(), `"server":"ok"`)
		require.Less(t, time.Since(begun), 4*time.Second, "a prober gives up soon")
	}
	require.Equal(t, 200, b.do("GET", "/livez", "").Code, "an outage of Redis is no reason to restart the API")
}

func TestWithoutRedisTheAnswerIs503WithinABoundedTime(t *testing.T) {
	b := newBundle(t, nil)
	id := b.submit(t, hello)
	require.NoError(t, b.redis.Pause())
	t.Cleanup(func() { _ = b.redis.Resume() })
	var all sync.WaitGroup
	for _, line := range []string{"POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/" + id, "POST /v1/jobs/" + id + "/cancel", "DELETE /v1/jobs/" + id} {
		all.Go(func() {
			method, target, _ := strings.Cut(line, " ")
			begun := time.Now()
			w := b.do(method, target, hello)
			took := time.Since(begun)
			if w.Code != 503 || w.Header().Get("Retry-After") != "2" || !strings.Contains(w.Body.String(), `"code":"redis_unavailable"`) || took > 3*time.Second {
				t.Errorf("%s: %d after %s, Retry-After %q: %s", line, w.Code, took, w.Header().Get("Retry-After"), w.Body)
			}
			if strings.Contains(w.Body.String(), "127.0.0.1") {
				t.Errorf("%s shows the inside: %s", line, w.Body)
			}
		})
	}
	all.Wait()
	require.Contains(t, b.log.String(), `"error":"tasks: `, "the cause is in the log")
}

// A stop answers those who wait, tells the load balancer, and lets the rest finish.
func TestDrain(t *testing.T) {
	b := newBundle(t, nil)
	id := b.submit(t, hello)
	base, stop := b.run(t)
	type answer struct {
		status int
		body   string
		err    error
	}
	polled := make(chan answer, 1)
	go func() {
		response, err := http.Get(base + "/v1/jobs/" + id + "?wait=1m")
		if err != nil {
			polled <- answer{err: err}
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		polled <- answer{response.StatusCode, string(body), err}
	}()
	require.Eventually(t, func() bool {
		subscribed, err := b.rdb.PubSubNumSub(t.Context(), "ferry:state:"+id).Result()
		return err == nil && subscribed["ferry:state:"+id] > 0
	}, 5*time.Second, time.Millisecond, "the poll has begun")
	begun := time.Now()
	require.NoError(t, stop())
	got := <-polled
	require.NoError(t, got.err)
	require.Equal(t, 200, got.status)
	require.Contains(t, got.body, `"state":"queued"`, "as it stands")
	require.Less(t, time.Since(begun), 5*time.Second)

	w := b.do("GET", "/readyz", "")
	require.Equal(t, 503, w.Code)
	require.Contains(t, w.Body.String(), `"server":"draining"`)
	require.Equal(t, 200, b.do("GET", "/livez", "").Code)
}

func TestALongPollSeesTheEnd(t *testing.T) {
	b := newBundle(t, nil)
	base, _ := b.run(t)
	id := b.submit(t, hello)
	answered := make(chan string, 1)
	go func() {
		response, err := http.Get(base + "/v1/jobs/" + id + "?wait=1m")
		if err != nil {
			answered <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answered <- string(body)
	}()
	require.Eventually(t, func() bool {
		subscribed, err := b.rdb.PubSubNumSub(t.Context(), "ferry:state:"+id).Result()
		return err == nil && subscribed["ferry:state:"+id] > 0
	}, 5*time.Second, time.Millisecond, "the poll has begun")
	require.Equal(t, 200, b.do("POST", "/v1/jobs/"+id+"/cancel", "").Code)
	require.Contains(t, <-answered, `"state":"canceled"`)
}

func TestDashboard(t *testing.T) {
	open := newBundle(t, nil)
	require.Equal(t, 200, open.do("GET", "/dashboard", "").Code, "without a key it is open")
	locked := newBundle(t, func(c *api.Config) { c.DashboardKey = "key-1" })
	basic := func(user, password string) string {
		r, _ := http.NewRequest("GET", "/", nil)
		r.SetBasicAuth(user, password)
		return "Authorization: " + r.Header.Get("Authorization")
	}
	for header, good := range map[string]bool{
		basic("anybody", "key-1"): true, basic("", "key-1"): true, "Authorization: Bearer key-1": true,
		"X-Nothing: 1": false, basic("key-1", ""): false, basic("a", "key-2"): false, "Authorization: Bearer ": false,
		"Authorization: Bearer key-12": false, "Authorization: ": false, "Authorization: Basic !!!": false,
	} {
		for _, target := range []string{"/dashboard", "/dashboard/", "/dashboard/api/queues"} {
			w := locked.do("GET", target, "", header)
			require.Equal(t, good, w.Code == 200, "%s with %s: %d", target, header, w.Code)
			if !good {
				e := envelope(t, w, 401, "invalid_dashboard_key")
				require.Equal(t, "Authorization", *e.Param)
				require.Contains(t, w.Header().Get("WWW-Authenticate"), "Basic ", "so that a browser asks")
			}
		}
	}
	off := newBundle(t, func(c *api.Config) { c.Dashboard = "off" })
	envelope(t, off.do("GET", "/dashboard", ""), 404, "unknown_url")
	_, err := api.New(api.Config{Upstreams: []string{"a"}, Dashboard: "open"}, open.rdb, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "dashboard: mode")
}

func TestTheDashboardRefusesOtherSites(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.Dashboard = "full" })
	const pause = "/dashboard/api/queues/main:default:pause"
	require.Equal(t, 403, b.do("POST", pause, "", "Sec-Fetch-Site: cross-site").Code)
	require.Equal(t, 403, b.do("POST", pause, "", "Origin: https://evil.example").Code)
	require.NotEqual(t, 403, b.do("POST", pause, "", "Sec-Fetch-Site: same-origin").Code)
	require.Equal(t, 404, b.do("GET", "/dashboard/static/js/main.js.map", "").Code)
	paused, err := b.rdb.Exists(t.Context(), "asynq:{main:default}:paused").Result()
	require.NoError(t, err)
	require.LessOrEqual(t, paused, int64(1))
}

func ExampleConfig_Validate() {
	err := api.Config{MaxBody: 10, Upstreams: []string{"openai"}}.WithDefaults().Validate()
	fmt.Println(err)
	// Output: api.max_body: 10 is not in 1024 to 1073741824 bytes
}
