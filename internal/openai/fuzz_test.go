package openai_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// FuzzClassify looks for an upstream's reply that gets no verdict, or one that no metric can have for a label.
func FuzzClassify(f *testing.F) {
	f.Add(200, []byte(`{"choices":[]}`), "", "", "")
	f.Add(200, []byte("<html>"), "1", "2", "true")
	f.Add(429, []byte(`{"error":{"code":"insufficient_quota"}}`), "7", "6m0s", "false")
	f.Add(429, []byte(`{"error":{"type":"insufficient_quota","code":null}}`), "-1", "1763900000000", "TRUE")
	f.Add(503, []byte{0xff}, "Mon, 23 Nov 2026 12:00:07 GMT", "NaN", "")
	f.Add(-1, []byte("null"), "99999999999999999999", "106751d23h47m17s", "")
	f.Fuzz(func(t *testing.T, status int, body []byte, retryAfter, reset, should string) {
		header := http.Header{
			"Retry-After": {retryAfter}, "Retry-After-Ms": {reset}, "X-Should-Retry": {should},
			"X-Ratelimit-Reset-Requests": {reset}, "X-Ratelimit-Remaining-Requests": {"0"},
		}
		v := openai.Classify(httpx.Outcome{Status: status, Header: header, Body: body})
		require.NotEqual(t, httpx.Unclassified, v.Class)
		require.Regexp(t, `^[a-z_]+(-?[0-9]+)?$`, v.Reason)
		require.GreaterOrEqual(t, v.Wait, time.Duration(0))
		require.True(t, v.Wait == 0 || v.Class.Retryable(), "%+v", v)
		require.Equal(t, v.Class == httpx.OK, v.Reason == "ok")
	})
}

// FuzzRedact looks for a text around a key that lets it through.
func FuzzRedact(f *testing.F) {
	f.Add("Incorrect API key provided: ", ".")
	f.Add(`{"Authorization": "Bearer `, `"}`)
	f.Add("api_key=", "&x=1")
	f.Fuzz(func(t *testing.T, before, after string) {
		const key = "sk-proj-hunter2hunter2hunter2"
		require.NotContains(t, openai.Redact(before+" "+key+" "+after), "hunter2hunter2")
	})
}
