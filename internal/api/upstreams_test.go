package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/dashboard"
)

// shown is what a client reads of an upstream.
type shown struct {
	Name    string
	Object  string
	Breaker struct {
		State        string
		Mode         string
		Reason       string
		Since        time.Time
		OpenUntil    time.Time `json:"open_until"`
		Calls        int64
		Failures     int64
		FailureRatio float64 `json:"failure_ratio"`
		Slow         int64
		Trips        int64
		Probes       int64
	}
	Jobs struct {
		Ready         int
		Taken         int
		Waiting       int
		OldestSeconds float64 `json:"oldest_seconds"`
		Paused        bool
	}
}

// strictly decodes a reply of 200 that has no field beyond those of v.
func strictly(t *testing.T, w *httptest.ResponseRecorder, v any) {
	t.Helper()
	require.Equal(t, 200, w.Code, w.Body)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	dec := json.NewDecoder(strings.NewReader(w.Body.String()))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(v), w.Body)
}

// upstreams is the list, whose order is that of the configuration: main, other.
func (b *bundle) upstreams(t *testing.T) []shown {
	t.Helper()
	var list struct {
		Object string
		Data   []shown
	}
	strictly(t, b.do("GET", "/v1/upstreams", ""), &list)
	require.Equal(t, "list", list.Object)
	require.Len(t, list.Data, 2)
	require.Equal(t, []string{"main", "other"}, []string{list.Data[0].Name, list.Data[1].Name})
	return list.Data
}

func (b *bundle) override(t *testing.T, name, mode string) shown {
	t.Helper()
	var up shown
	strictly(t, b.do("POST", "/v1/upstreams/"+name+"/"+mode, ""), &up)
	return up
}

func TestUpstreamsAreShownBeforeAnyWorkerRan(t *testing.T) {
	b := newBundle(t, nil)
	for _, up := range b.upstreams(t) {
		require.Equal(t, "upstream", up.Object)
		require.Equal(t, []string{"closed", "auto", ""}, []string{up.Breaker.State, up.Breaker.Mode, up.Breaker.Reason})
		require.True(t, up.Breaker.OpenUntil.IsZero())
		require.Zero(t, up.Breaker.Calls)
		require.Zero(t, up.Jobs)
	}
	require.Empty(t, b.keys(t), "to look changes nothing")
}

// Every field is always there, but for those that have no value; and no secret has a field.
func TestUpstreamsShowNothingElse(t *testing.T) {
	b := newBundle(t, nil)
	var list struct{ Data []map[string]json.RawMessage }
	require.NoError(t, json.Unmarshal(b.do("GET", "/v1/upstreams", "").Body.Bytes(), &list))
	fields := func(data json.RawMessage) []string {
		var object map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &object))
		return slices.Sorted(maps.Keys(object))
	}
	require.Equal(t, []string{"breaker", "jobs", "name", "object"}, slices.Sorted(maps.Keys(list.Data[0])))
	require.Equal(t, []string{"calls", "failure_ratio", "failures", "mode", "probes", "since", "slow", "state", "trips"}, fields(list.Data[0]["breaker"]))
	require.Equal(t, []string{"oldest_seconds", "paused", "ready", "taken", "waiting"}, fields(list.Data[0]["jobs"]))
}

func TestOverrideIsShownToEveryone(t *testing.T) {
	b := newBundle(t, nil)
	steps := []struct{ mode, state string }{{"open", "open"}, {"open", "open"}, {"close", "closed"}, {"auto", "closed"}, {"open", "open"}, {"auto", "closed"}}
	for _, step := range steps {
		got := b.override(t, "other", step.mode)
		require.Equal(t, []string{"other", step.state, step.mode, "operator"}, []string{got.Name, got.Breaker.State, got.Breaker.Mode, got.Breaker.Reason})
		require.WithinDuration(t, time.Now(), got.Breaker.Since, time.Minute)
		require.True(t, got.Breaker.OpenUntil.IsZero(), "an operator's word has no end")

		list := b.upstreams(t)
		require.Equal(t, "auto", list[0].Breaker.Mode, "the other upstream is left alone")
		require.Equal(t, []string{step.state, step.mode}, []string{list[1].Breaker.State, list[1].Breaker.Mode})
	}
	require.Contains(t, b.log.String(), `"level":"WARN","msg":"breaker overridden","upstream":"other","mode":"open"`)
}

// The API calls nobody, but what a worker's calls led to is its to show.
func TestUpstreamsShowWhatTheWorkersDecided(t *testing.T) {
	settings := breaker.Config{Name: "main", HardFailures: 3, OpenFor: time.Minute, MaxOpenFor: time.Minute, OpenJitter: -1}
	b := newBundle(t, func(c *api.Config) { c.Breakers = map[string]breaker.Config{"main": settings} })
	b.trip(t, settings)
	up := b.upstreams(t)[0].Breaker
	require.Equal(t, []string{"open", "auto", "hard_failures"}, []string{up.State, up.Mode, up.Reason})
	require.EqualValues(t, 3, up.Failures)
	require.EqualValues(t, 3, up.Calls)
	require.InDelta(t, 1, up.FailureRatio, 0)
	require.EqualValues(t, 1, up.Trips)
	require.WithinDuration(t, up.Since.Add(time.Minute), up.OpenUntil, 5*time.Second)
}

// trip opens the breaker of an upstream as a worker would.
func (b *bundle) trip(t *testing.T, settings breaker.Config) {
	t.Helper()
	worker, err := breaker.New(b.rdb, settings)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	synced := make(chan error, 1)
	go func() { synced <- worker.Sync(ctx) }()
	require.Eventually(t, func() bool { return worker.Status().Fleet }, 5*time.Second, time.Millisecond)
	for range settings.HardFailures {
		_ = worker.Run(func() error { return errors.New("down") }) // the failure is what it is for
	}
	require.Eventually(t, func() bool { return worker.Status().State == breaker.Open }, 5*time.Second, time.Millisecond)
	stop()
	require.NoError(t, <-synced)
}

func TestUpstreamsCountTheirJobs(t *testing.T) {
	b := newBundle(t, nil)
	b.submit(t, jobWith(`"priority":"high"`))
	b.submit(t, jobWith(`"priority":"low"`))
	b.submit(t, jobWith(`"delay":"1h"`))
	b.submit(t, jobWith(`"upstream":"other"`))
	taken := b.submit(t, hello)
	// What asynq does when a worker takes a task.
	require.NoError(t, b.rdb.LMove(t.Context(), "asynq:{main:default}:pending", "asynq:{main:default}:active", "RIGHT", "LEFT").Err())
	require.Equal(t, []string{taken}, b.rdb.LRange(t.Context(), "asynq:{main:default}:active", 0, -1).Val())

	list := b.upstreams(t)
	jobs := list[0].Jobs
	require.Equal(t, []int{2, 1, 1}, []int{jobs.Ready, jobs.Taken, jobs.Waiting})
	require.False(t, jobs.Paused)
	require.Positive(t, jobs.OldestSeconds)
	require.Less(t, jobs.OldestSeconds, 60.0)
	jobs = list[1].Jobs
	require.Equal(t, []int{1, 0, 0}, []int{jobs.Ready, jobs.Taken, jobs.Waiting})
}

func TestUpstreamsShowAPauseOfTheDashboard(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.Dashboard = dashboard.Full })
	paused := func() []bool {
		list := b.upstreams(t)
		return []bool{list[0].Jobs.Paused, list[1].Jobs.Paused}
	}
	b.submit(t, hello)
	b.submit(t, jobWith(`"priority":"low"`))
	require.Equal(t, []bool{false, false}, paused())
	require.Equal(t, 204, b.do("POST", "/dashboard/api/queues/main:low:pause", "").Code)
	require.Equal(t, []bool{true, false}, paused(), "one of its three queues is enough")
	b.override(t, "main", "open")
	b.override(t, "main", "auto")
	require.Equal(t, []bool{true, false}, paused(), "the breaker has nothing to do with it")
	require.Equal(t, 204, b.do("POST", "/dashboard/api/queues/main:low:resume", "").Code)
	require.Equal(t, []bool{false, false}, paused())
}

func TestBadOverrides(t *testing.T) {
	b := newBundle(t, nil)
	tests := []struct {
		line   string
		status int
		code   string
		param  string
		says   string
	}{
		{"POST /v1/upstreams/nobody/open", 404, "unknown_upstream", "name", "give one of main, other"},
		{"POST /v1/upstreams/Main/open", 404, "unknown_upstream", "name", `"Main"`},
		{"POST /v1/upstreams/nobody/shut", 404, "unknown_upstream", "name", "give one of main, other"},
		{"POST /v1/upstreams/main/shut", 400, "invalid_value", "mode", `"shut" is not one of open, close, auto`},
		{"POST /v1/upstreams/main/OPEN", 400, "invalid_value", "mode", `"OPEN"`},
		{"POST /v1/upstreams//open", 404, "unknown_upstream", "name", `""`},
		{"POST /v1/upstreams/main", 404, "unknown_url", "", ""},
		{"POST /v1/upstreams/main/open/wide", 400, "invalid_value", "mode", `"open/wide"`},
		{"GET /v1/upstreams/main/open", 405, "method_not_allowed", "", ""},
		{"POST /v1/upstreams", 405, "method_not_allowed", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			method, target, _ := strings.Cut(tt.line, " ")
			e := envelope(t, b.do(method, target, ""), tt.status, tt.code)
			require.Contains(t, e.Message, tt.says)
			if tt.param == "" {
				require.Nil(t, e.Param)
				return
			}
			require.Equal(t, tt.param, *e.Param)
		})
	}
	long := envelope(t, b.do("POST", "/v1/upstreams/"+strings.Repeat("x", 5000)+"/open", ""), 404, "unknown_upstream")
	require.Less(t, len(long.Message), 1100, "what it repeats is bounded")
	require.Empty(t, b.keys(t), "a refusal changes nothing")
}

func TestUpstreamsWithoutRedis(t *testing.T) {
	b := newBundle(t, nil)
	require.NoError(t, b.redis.Pause())
	t.Cleanup(func() { _ = b.redis.Resume() })
	for _, line := range []string{"GET /v1/upstreams", "POST /v1/upstreams/main/open"} {
		method, target, _ := strings.Cut(line, " ")
		begun := time.Now()
		w := b.do(method, target, "")
		envelope(t, w, 503, "redis_unavailable")
		require.Equal(t, "2", w.Header().Get("Retry-After"))
		require.NotContains(t, w.Body.String(), "127.0.0.1")
		require.Less(t, time.Since(begun), 8*time.Second)
	}
	require.NotContains(t, b.log.String(), "breaker overridden", "what did not happen is not logged")
}
