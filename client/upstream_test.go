package client_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/client"
)

const fullUpstream = `{"name":"openai","object":"upstream","breaker":{"state":"open","mode":"auto","reason":"failure_ratio",
  "since":"2026-11-23T12:00:00.123Z","open_until":"2026-11-23T12:00:05.5Z",
  "calls":60,"failures":42,"failure_ratio":0.7,"slow":3,"trips":2,"probes":1},
 "jobs":{"ready":7,"taken":1,"waiting":5,"oldest_seconds":1.5,"paused":true}}`

func TestUpstreamDecodesEveryField(t *testing.T) {
	c, s := newClient(t, client.Config{}, answer{status: http.StatusOK, body: `{"object":"list","data":[` + fullUpstream + `,{"name":"local"}]}`})
	got, err := c.Upstreams(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"GET /v1/upstreams"}, s.paths())
	at := func(ms int) time.Time { return time.Date(2026, 11, 23, 12, 0, 0, ms*1e6, time.UTC) }
	want := []client.Upstream{
		{
			Name: "openai", Object: "upstream",
			Breaker: client.Breaker{
				State: client.BreakerOpen, Mode: client.ModeAuto, Reason: "failure_ratio", Since: at(123), OpenUntil: at(5500),
				Calls: 60, Failures: 42, FailureRatio: 0.7, Slow: 3, Trips: 2, Probes: 1,
			},
			Jobs: client.Backlog{Ready: 7, Taken: 1, Waiting: 5, Oldest: 1500 * time.Millisecond, Paused: true},
		},
		{Name: "local"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(client.Upstream{})); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	require.JSONEq(t, fullUpstream, string(got[0].RawJSON()))
}

func TestOverrideIsRepeatedWhenItsAnswerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newClient(t, client.Config{}, answer{err: errReset}, answer{status: http.StatusOK, body: fullUpstream})
		up, err := c.Override(t.Context(), "a/../b?c", client.ModeOpen)
		require.NoError(t, err)
		require.Equal(t, client.BreakerOpen, up.Breaker.State)
		require.Equal(t, []string{"POST /v1/upstreams/a%2F..%2Fb%3Fc/open", "POST /v1/upstreams/a%2F..%2Fb%3Fc/open"}, s.paths())
	})
}

func TestOverrideCannotNameAnotherResource(t *testing.T) {
	c, s := newClient(t, client.Config{}, answer{status: http.StatusOK, body: fullUpstream})
	for _, bad := range []string{"", ".", ".."} {
		_, err := c.Override(t.Context(), bad, client.ModeOpen)
		require.ErrorContains(t, err, "is not an upstream")
		_, err = c.Override(t.Context(), "openai", client.BreakerMode(bad))
		require.ErrorContains(t, err, "is not a breaker mode")
	}
	require.Empty(t, s.seen)
}

func TestOverrideReportsWhatTheServerRefuses(t *testing.T) {
	c, _ := newClient(t, client.Config{}, envelope(http.StatusNotFound, "unknown_upstream"))
	_, err := c.Override(t.Context(), "nobody", client.ModeAuto)
	e, ok := errors.AsType[*client.APIError](err)
	require.True(t, ok, "%T", err)
	require.Equal(t, "unknown_upstream", e.Code)
}

func TestAnotherServersAnswerIsNotAnUpstream(t *testing.T) {
	for _, body := range []string{"<html>", "{}", "null", "[]", `{"object":"list","data":[null]}`, `{"object":"list","data":[{}]}`} {
		c, _ := newClient(t, client.Config{}, answer{status: http.StatusOK, body: body})
		_, err := c.Upstreams(t.Context())
		require.ErrorContains(t, err, "http://ferry.test does not answer like a Ferry server", body)
		_, err = c.Override(t.Context(), "openai", client.ModeAuto)
		require.ErrorContains(t, err, "http://ferry.test does not answer like a Ferry server", body)
	}
}

// Whatever decodes keeps its meaning when it is written and read again.
func FuzzUpstream(f *testing.F) {
	f.Add([]byte(fullUpstream))
	f.Add([]byte(`{"name":"x","breaker":null,"jobs":null}`))
	f.Add([]byte(`{"name":"x","jobs":{"oldest_seconds":1e300}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var up, again client.Upstream
		if json.Unmarshal(data, &up) != nil {
			return
		}
		written, err := json.Marshal(up)
		if err != nil {
			return // such as a year beyond 9999, which can be read only
		}
		require.NoError(t, json.Unmarshal(written, &again))
		if diff := cmp.Diff(up, again, cmpopts.IgnoreUnexported(client.Upstream{})); diff != "" {
			t.Errorf("once more (-first +second):\n%s", diff)
		}
	})
}
