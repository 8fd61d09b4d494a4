package client

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzAPIError looks for a refusal that breaks the client or tells its user nothing.
func FuzzAPIError(f *testing.F) {
	f.Add(404, []byte(`{"error":{"message":"m","type":"t","param":null,"code":"job_not_found"}}`), "2", "false")
	f.Add(502, []byte("<html>Bad Gateway</html>"), "Mon, 23 Nov 2026 12:00:07 GMT", "")
	f.Add(599, []byte(`{"error":"text"}`), "NaN", "true")
	f.Add(-1, []byte(`{"error":{"message":["m"],"code":7}}`), "1e300", "x")
	f.Fuzz(func(t *testing.T, status int, body []byte, retryAfter, should string) {
		header := http.Header{"Retry-After": {retryAfter}, "X-Should-Retry": {should}, "X-Request-Id": {"r-1"}}
		err := newAPIError(&http.Response{StatusCode: status, Header: header}, body)
		require.NotEmpty(t, err.Message)
		require.Contains(t, err.Error(), "request r-1")
		require.GreaterOrEqual(t, err.RetryAfter.Nanoseconds(), int64(0))
		require.Equal(t, should == "false", err.final)
	})
}

// FuzzPage looks for a list that breaks whoever goes over it.
func FuzzPage(f *testing.F) {
	f.Add([]byte(`{"object":"list","data":[{"id":"job_1","state":"queued"}],"has_more":true,"next":"x.job_1"}`))
	f.Add([]byte(`{"object":"list","data":null}`))
	f.Add([]byte(`{"object":"list","data":[null]}`))
	f.Add([]byte(`{"data":[{"id":"x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var page Page
		if json.Unmarshal(data, &page) != nil {
			return
		}
		for _, job := range page.Data {
			require.NotEmpty(t, job.ID)
			require.NotEmpty(t, job.RawJSON())
		}
		require.Equal(t, string(data), string(page.RawJSON()))
	})
}
