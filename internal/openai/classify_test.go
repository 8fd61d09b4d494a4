package openai_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// What httpx decides is its own table; here is what an OpenAI-compatible upstream adds to it.
func TestClassify(t *testing.T) {
	retryAfter := http.Header{"Retry-After": {"7"}}
	tests := []struct {
		name    string
		outcome httpx.Outcome
		class   httpx.Class
		reason  string
	}{
		{"an answer", httpx.Outcome{Status: 200, Body: []byte(`{"id":"x"}`), Sent: true}, httpx.OK, "ok"},
		{"a 200 that is no JSON", httpx.Outcome{Status: 200, Body: []byte(`<html>`), Sent: true}, httpx.Transient, "invalid_json"},
		{"an empty 200", httpx.Outcome{Status: 200, Sent: true}, httpx.Transient, "invalid_json"},
		{"half a JSON", httpx.Outcome{Status: 200, Body: []byte(`{"id":`), Sent: true}, httpx.Transient, "invalid_json"},
		{"a spent quota by its code", httpx.Outcome{Status: 429, Body: []byte(`{"error":{"message":"m","code":"insufficient_quota"}}`), Header: retryAfter}, httpx.Permanent, "insufficient_quota"},
		{"a spent quota by its type", httpx.Outcome{Status: 429, Body: []byte(`{"error":{"type":"insufficient_quota"}}`)}, httpx.Permanent, "insufficient_quota"},
		{"too fast", httpx.Outcome{Status: 429, Body: []byte(`{"error":{"message":"slow down","code":"rate_limit_exceeded"}}`), Header: retryAfter}, httpx.Throttled, "http_429"},
		{"a message that speaks of quota", httpx.Outcome{Status: 429, Body: []byte(`{"error":{"message":"insufficient_quota"}}`)}, httpx.Throttled, "http_429"},
		{"a 429 of a proxy", httpx.Outcome{Status: 429, Body: []byte(`<html>`)}, httpx.Throttled, "http_429"},
		{"a quota word in a 500", httpx.Outcome{Status: 500, Body: []byte(`{"error":{"code":"insufficient_quota"}}`)}, httpx.Transient, "http_500"},
		{"an error page", httpx.Outcome{Status: 502, Body: []byte(`<html>`)}, httpx.Transient, "http_502"},
		{"a wrong key", httpx.Outcome{Status: 401, Body: []byte(`{}`)}, httpx.Permanent, "http_401"},
		{"a lost connection", httpx.Outcome{Status: 200, Body: []byte(`{`), Err: errors.New("cut"), Sent: true}, httpx.Transient, "partial_body"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := openai.Classify(tt.outcome)
			require.Equal(t, tt.class, v.Class)
			require.Equal(t, tt.reason, v.Reason)
			if v.Class == httpx.Permanent {
				require.Zero(t, v.Wait, "no wait helps")
			}
		})
	}
}

func TestA200ThatIsNoJSONMayHaveBeenBilled(t *testing.T) {
	v := openai.Classify(httpx.Outcome{Status: 200, Body: []byte("garbage"), Sent: true})
	require.True(t, v.OutcomeUnknown)
	require.True(t, v.Unhealthy, "the breaker should hear of it")
}
