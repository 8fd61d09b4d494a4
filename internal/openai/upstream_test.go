package openai_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

func noHooks() httpx.Hooks { return httpx.Hooks{} }

// start returns an upstream on a simulated one. Its waits are too short to notice.
func start(t *testing.T, sim upstreamtest.Config, change func(*openai.Config)) (*openai.Upstream, *upstreamtest.Server) {
	t.Helper()
	server := upstreamtest.Start(t, sim)
	quick := httpx.Policy{MaxAttempts: 4, Backoff: httpx.Backoff{Base: time.Microsecond, Max: time.Millisecond}, MaxHint: time.Millisecond}
	cfg := openai.Config{
		Name: "sim", BaseURL: server.BaseURL(),
		Policies: map[openai.Kind]httpx.Policy{openai.Chat: quick, openai.Generate: quick, openai.Embeddings: quick},
	}
	if change != nil {
		change(&cfg)
	}
	u, err := openai.New(cfg, nil, noHooks())
	require.NoError(t, err)
	t.Cleanup(u.Close)
	return u, server
}

// Spaces, order and unknown fields of a body are the caller's.
const oddBody = "{ \"model\":\"m\",\n\t\"messages\":[{\"role\":\"user\",\"content\":\"\\u003ca\\u003e & ü\"}], \"invented\":1e2 }"

func TestDoSendsTheBodyByteForByte(t *testing.T) {
	bodies := map[openai.Kind]string{
		openai.Chat:       oddBody,
		openai.Generate:   `{"prompt":"hi",  "model":"m"}`,
		openai.Embeddings: `{"input":["a" ,"b"],"model":"m"}`,
	}
	u, server := start(t, upstreamtest.Config{APIKey: hidden}, func(c *openai.Config) { c.APIKey = hidden })
	for _, kind := range openai.Kinds() {
		answer, err := u.Do(t.Context(), openai.Call{Kind: kind, Body: []byte(bodies[kind]), IdempotencyKey: "job_1"})
		require.NoError(t, err)
		require.Equal(t, 200, answer.Status)
		journal := server.Journal()
		got := journal[len(journal)-1]
		require.Equal(t, "POST", got.Method)
		require.Equal(t, "/v1"+kind.Path(), got.Path)
		require.Equal(t, bodies[kind], string(got.Body))
		require.Equal(t, "application/json", got.Header.Get("Content-Type"))
		require.Equal(t, "application/json", got.Header.Get("Accept"))
		require.Equal(t, "ferry", got.Header.Get("User-Agent"))
		require.Equal(t, "Bearer "+hidden, got.Header.Get("Authorization"))
	}
	require.Equal(t, "sim", u.Name())
	require.EqualValues(t, 3, u.Stats().Attempts)
}

func TestWithoutAKeyNoAuthorizationIsSent(t *testing.T) {
	u, server := start(t, upstreamtest.Config{}, nil)
	_, err := u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody)})
	require.NoError(t, err)
	require.NotContains(t, server.Journal()[0].Header, "Authorization")
	require.NotContains(t, server.Journal()[0].Header, "Idempotency-Key")
}

func TestEveryAttemptHasTheSameIdempotencyKey(t *testing.T) {
	u, server := start(t, upstreamtest.Config{}, nil)
	server.Script(
		upstreamtest.Step{Fault: upstreamtest.Status(503)}, upstreamtest.Step{Fault: upstreamtest.Garbage},
		upstreamtest.Step{Fault: upstreamtest.Status(429), RetryAfter: time.Second}, upstreamtest.Step{},
	)
	answer, err := u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody), IdempotencyKey: "job_7"})
	require.NoError(t, err)
	require.Len(t, answer.Attempts, 4)
	for _, record := range server.Journal() {
		require.Equal(t, "job_7", record.Key)
		require.Equal(t, oddBody, string(record.Body))
	}
}

func TestACallHasNoMoreAttemptsThanItsJob(t *testing.T) {
	u, server := start(t, upstreamtest.Config{Faults: upstreamtest.MustParseFaults("500=1")}, nil)
	_, err := u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody), MaxAttempts: 2})
	var failed *httpx.Error
	require.ErrorAs(t, err, &failed)
	require.Equal(t, httpx.Transient, failed.Class)
	require.EqualValues(t, 2, server.Requests())
	e, ok := openai.ParseError(failed.Body)
	require.True(t, ok)
	require.NotEmpty(t, e.Message)
}

func TestASpentQuotaEndsTheCallAtOnce(t *testing.T) {
	u, server := start(t, upstreamtest.Config{Faults: upstreamtest.MustParseFaults("quota=1")}, nil)
	_, err := u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody)})
	var failed *httpx.Error
	require.ErrorAs(t, err, &failed)
	require.Equal(t, httpx.Permanent, failed.Class)
	require.Equal(t, "insufficient_quota", failed.Reason)
	require.EqualValues(t, 1, server.Requests())
}

func TestAnAnswerLargerThanMaxAnswerIsNotKept(t *testing.T) {
	u, _ := start(t, upstreamtest.Config{}, func(c *openai.Config) { c.MaxAnswer = 10 })
	_, err := u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody)})
	require.ErrorIs(t, err, httpx.ErrBodyTooLarge)
}

func TestWithDefaultsCompletesAnUpstream(t *testing.T) {
	cfg := openai.Config{Name: "a", BaseURL: "https://api.example.com/v1/"}.WithDefaults()
	require.NoError(t, cfg.Validate())
	require.Equal(t, "https://api.example.com/v1", cfg.BaseURL)
	require.Equal(t, 64, cfg.Concurrency)
	require.Equal(t, 64, cfg.Pool.MaxConns, "one connection per call")
	require.EqualValues(t, 32<<20, cfg.MaxAnswer)
	for _, kind := range openai.Kinds() {
		require.Equal(t, httpx.Presets()[string(kind)], cfg.Policies[kind], kind)
	}
	require.Equal(t, cfg, cfg.WithDefaults(), "twice is once")
}

// A preset's limits give way to those that were set, so that one line in a file is never a contradiction.
func TestWithDefaultsKeepsPresetsWithinWhatWasSet(t *testing.T) {
	const off = -time.Second
	preset := httpx.Presets()["chat"] // first byte 1m, attempt 3m, total 5m
	tests := []struct {
		name                      string
		set                       httpx.Policy
		firstByte, attempt, total time.Duration
	}{
		{"nothing", httpx.Policy{}, time.Minute, 3 * time.Minute, 5 * time.Minute},
		{"a short total", httpx.Policy{Total: 20 * time.Second}, 20 * time.Second, 20 * time.Second, 20 * time.Second},
		{"a long attempt", httpx.Policy{Attempt: 10 * time.Minute}, time.Minute, 10 * time.Minute, 10 * time.Minute},
		{"a short attempt", httpx.Policy{Attempt: 5 * time.Second}, 5 * time.Second, 5 * time.Second, 5 * time.Minute},
		{"a long first byte", httpx.Policy{FirstByte: 8 * time.Minute}, 8 * time.Minute, 8 * time.Minute, 8 * time.Minute},
		{"no total", httpx.Policy{Total: off}, time.Minute, 3 * time.Minute, off},
		{"no limit per attempt", httpx.Policy{Attempt: off}, time.Minute, off, 5 * time.Minute},
		{"no limit for the first byte", httpx.Policy{FirstByte: off}, off, 3 * time.Minute, 5 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := openai.Config{Name: "a", BaseURL: "http://a/v1", Policies: map[openai.Kind]httpx.Policy{openai.Chat: tt.set}}.WithDefaults()
			require.NoError(t, cfg.Validate())
			got := cfg.Policies[openai.Chat]
			require.Equal(t, []time.Duration{tt.firstByte, tt.attempt, tt.total}, []time.Duration{got.FirstByte, got.Attempt, got.Total})
			require.Equal(t, preset.Backoff, got.Backoff)
			require.Equal(t, preset.Idle, got.Idle)
		})
	}
	long := openai.Config{Policies: map[openai.Kind]httpx.Policy{openai.Chat: {Backoff: httpx.Backoff{Base: time.Minute}}}}.WithDefaults()
	require.Equal(t, time.Minute, long.Policies[openai.Chat].Backoff.Max, "at least the base")
}

func TestValidateNamesEveryProblem(t *testing.T) {
	cfg := openai.Config{
		Name: "Not A Name", BaseURL: "ftp://x", Concurrency: -1, MaxAnswer: -1,
		Pool: httpx.Pool{Wait: -1}, Budget: httpx.BudgetConfig{Ratio: 2},
		Policies: map[openai.Kind]httpx.Policy{openai.Embeddings: {MaxAttempts: 1000, Total: time.Second, Attempt: time.Minute}},
	}
	err := cfg.WithDefaults().Validate()
	for _, want := range []string{
		"name: \"Not A Name\"", "base_url: must be an http or https URL", "concurrency: -1", "max_answer: -1",
		"pool.wait: -1ns", "budget.ratio: 2", "policies.embeddings.max_attempts: 1000", "policies.embeddings.attempt: 1m0s is above total 1s",
	} {
		require.ErrorContains(t, err, want)
	}
	_, newErr := openai.New(cfg, nil, noHooks())
	require.ErrorContains(t, newErr, "upstream Not A Name: ")
	require.ErrorContains(t, newErr, err.Error())
}

func TestValidateOfNamesAndURLs(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "openai": true, "gpt-4": true, "0": true, strings.Repeat("a", 32): true,
		"": false, "-a": false, "A": false, "a_b": false, "a:b": false, "a{b}": false, "a b": false, "ü": false, "a\n": false, strings.Repeat("a", 33): false,
	} {
		err := openai.Config{Name: name, BaseURL: "http://a"}.WithDefaults().Validate()
		require.Equal(t, good, err == nil, "%q: %v", name, err)
	}
	for url, good := range map[string]bool{
		"http://127.0.0.1:1/v1": true, "https://api.example.com": true, "https://h/openai/deployments/x/v1//": true,
		"": false, "api.example.com/v1": false, "https://": false, "file:///etc/passwd": false, "https://user:hunter2@h/v1": false, "https://h/v1?key=hunter2": false, "https://h\x00": false,
	} {
		err := openai.Config{Name: "a", BaseURL: url}.WithDefaults().Validate()
		require.Equal(t, good, err == nil, "%q: %v", url, err)
		if err != nil {
			require.NotContains(t, err.Error(), "hunter2", "a key in a URL is not repeated")
		}
	}
}

func TestDoFailsWithAnHTTPXError(t *testing.T) {
	u, server := start(t, upstreamtest.Config{}, nil)
	server.Down()
	_, err := u.Do(t.Context(), openai.Call{Kind: openai.Embeddings, Body: []byte(`{"model":"m","input":"x"}`)})
	_, ok := errors.AsType[*httpx.Error](err)
	require.True(t, ok, "%T", err)
}

// A key of one's own gateway may look like anything, and what an upstream says ends up in a job's error.
func TestTheKeyIsTakenOutOfWhatTheUpstreamSays(t *testing.T) {
	for key, shown := range map[string]string{"opaque.7-hunter2": `{"error":"no access for Bearer [redacted]"}`, "none": `{"error":"no access for Bearer none"}`} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"error":"no access for %s"}`, r.Header.Get("Authorization"))
		}))
		t.Cleanup(server.Close)
		u, err := openai.New(openai.Config{Name: "a", BaseURL: server.URL, APIKey: openai.Secret(key)}, nil, noHooks())
		require.NoError(t, err)
		t.Cleanup(u.Close)
		_, err = u.Do(t.Context(), openai.Call{Kind: openai.Chat, Body: []byte(oddBody)})
		failed, ok := errors.AsType[*httpx.Error](err)
		require.True(t, ok)
		require.Equal(t, shown, string(failed.Body))
	}
}
