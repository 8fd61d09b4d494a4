package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/client"
)

// answer is one exchange of a scripted server: a reply or an error of the transport.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
	hold   time.Duration // before the answer, unless the request's context ends first
}

// script is a transport that gives its answers in turn, the last one for ever, and keeps what it saw.
type script struct {
	answers []answer
	seen    []seen
	start   time.Time
}

// seen is one request that reached the script.
type seen struct {
	at           time.Duration // since the first request
	method, path string
	key, auth    string
	body         string
}

// RoundTrip implements http.RoundTripper.
func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if s.start.IsZero() {
		s.start = time.Now()
	}
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
	}
	s.seen = append(s.seen, seen{
		at: time.Since(s.start), method: req.Method, path: req.URL.RequestURI(), body: string(body),
		key: req.Header.Get("Idempotency-Key"), auth: req.Header.Get("Authorization"),
	})
	a := s.answers[min(len(s.seen), len(s.answers))-1]
	select {
	case <-time.After(a.hold):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.header == nil {
		a.header = http.Header{}
	}
	return &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(strings.NewReader(a.body)), Request: req}, nil
}

// paths are the requests in short.
func (s *script) paths() []string {
	var paths []string
	for _, r := range s.seen {
		paths = append(paths, r.method+" "+r.path)
	}
	return paths
}

// newClient is a client of a scripted server. It needs no port and runs in virtual time.
func newClient(t *testing.T, cfg client.Config, answers ...answer) (*client.Client, *script) {
	t.Helper()
	s := &script{answers: answers}
	cfg.BaseURL = "http://ferry.test"
	cfg.HTTP = &http.Client{Transport: s}
	c, err := client.New(cfg)
	require.NoError(t, err)
	return c, s
}

func jobIn(state client.State) answer {
	return answer{status: http.StatusOK, body: fmt.Sprintf(`{"id":"job_1","object":"job","state":%q}`, state)}
}

func envelope(status int, code string) answer {
	return answer{status: status, body: fmt.Sprintf(`{"error":{"message":"no luck","type":"api_error","param":null,"code":%q}}`, code)}
}

var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	errReset   = &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
	chat       = json.RawMessage(`{"model":"m","messages":[]}`)
)

func TestNewNamesEveryProblem(t *testing.T) {
	_, err := client.New(client.Config{BaseURL: "localhost:8080", APIKey: "two words\n", Timeout: -1})
	require.EqualError(t, err, `client: base URL "localhost:8080" is not of the form http://host:port
client: API key holds a space, a line end or a character outside ASCII
client: timeout -1ns is negative`)
}

func TestSecretIsNeverPrinted(t *testing.T) {
	cfg := client.Config{APIKey: "sk-hidden"}
	c, err := client.New(cfg)
	require.NoError(t, err)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(format, cfg), "hidden", format)
	}
	require.Equal(t, "ferry client of http://127.0.0.1:8080", fmt.Sprintf("%v", c))
}

func TestSubmitSendsEveryField(t *testing.T) {
	c, s := newClient(t, client.Config{APIKey: "sk-1"}, answer{status: http.StatusAccepted, body: `{"id":"job_1","object":"job","state":"queued"}`})
	job, err := c.Submit(t.Context(), client.SubmitRequest{
		Kind: client.KindChat, Request: map[string]any{"model": "m", "prompt": "<b>"}, Upstream: "openai",
		Priority: client.PriorityHigh, Delay: 10 * time.Second, RunAt: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		ExpiresIn: time.Hour, MaxAttempts: 3, Retention: time.Minute, Metadata: map[string]string{"k": "v"}, IdempotencyKey: "mine",
	})
	require.NoError(t, err)
	require.Equal(t, client.StateQueued, job.State)
	require.Equal(t, "mine", s.seen[0].key)
	require.Equal(t, "Bearer sk-1", s.seen[0].auth)
	require.Equal(t, `{"kind":"chat","request":{"model":"m","prompt":"<b>"},"upstream":"openai","priority":"high",`+
		`"delay":"10s","run_at":"2026-11-23T12:00:00Z","expires_in":"1h0m0s","max_attempts":3,"retention":"1m0s","metadata":{"k":"v"}}`+"\n",
		s.seen[0].body)
}

func TestSubmitLeavesOutWhatIsNotSet(t *testing.T) {
	c, s := newClient(t, client.Config{}, jobIn(client.StateQueued))
	_, err := c.Submit(t.Context(), client.SubmitRequest{Kind: client.KindChat, Request: chat})
	require.NoError(t, err)
	require.Equal(t, `{"kind":"chat","request":{"model":"m","messages":[]}}`+"\n", s.seen[0].body)
	require.Empty(t, s.seen[0].auth)
}

func TestSubmitWithoutRequestIsRefusedHere(t *testing.T) {
	c, s := newClient(t, client.Config{}, jobIn(client.StateQueued))
	_, err := c.Submit(t.Context(), client.SubmitRequest{Kind: client.KindChat})
	require.ErrorContains(t, err, "without a request")
	_, err = c.Submit(t.Context(), client.SubmitRequest{Kind: client.KindChat, Request: json.RawMessage("{")})
	require.ErrorContains(t, err, "request for the upstream")
	require.Empty(t, s.seen)
}

func TestSubmitRepeatsWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newClient(t, client.Config{}, answer{err: errReset}, envelope(http.StatusBadGateway, ""), jobIn(client.StateQueued))
		for range 2 {
			_, err := c.Submit(t.Context(), client.SubmitRequest{Kind: client.KindChat, Request: chat})
			require.NoError(t, err)
		}
		require.Len(t, s.seen, 4)
		require.NotEmpty(t, s.seen[0].key)
		require.Equal(t, s.seen[0].key, s.seen[1].key)
		require.Equal(t, s.seen[0].key, s.seen[2].key)
		require.Equal(t, s.seen[0].body, s.seen[2].body)
		require.NotEqual(t, s.seen[0].key, s.seen[3].key, "another Submit is another job")
	})
}

func TestPauseIsTheLongerOfBackoffAndRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := envelope(http.StatusServiceUnavailable, "overloaded")
		busy.header = http.Header{"Retry-After": {"3"}}
		var told []int
		cfg := client.Config{OnRetry: func(n int, err error, pause time.Duration) { told = append(told, n) }}
		c, s := newClient(t, cfg, busy, answer{err: errRefused}, jobIn(client.StateRunning))
		_, err := c.Get(t.Context(), "job_1")
		require.NoError(t, err)
		require.Equal(t, []int{1, 2}, told)
		require.Equal(t, 3*time.Second, s.seen[1].at, "as the server asked")
		backoff := s.seen[2].at - s.seen[1].at
		require.GreaterOrEqual(t, backoff, 250*time.Millisecond)
		require.LessOrEqual(t, backoff, 500*time.Millisecond)
	})
}

func TestPatienceEndsACall(t *testing.T) {
	long := envelope(http.StatusServiceUnavailable, "overloaded")
	long.header = http.Header{"Retry-After": {"60"}}
	never := envelope(http.StatusServiceUnavailable, "closed")
	never.header = http.Header{"X-Should-Retry": {"false"}}
	tests := []struct {
		name     string
		answer   answer
		patience time.Duration
		min, max int // requests
	}{
		{name: "an unreachable server is tried for a while", answer: answer{err: errRefused}, min: 5, max: 9},
		{name: "negative patience is one attempt", answer: answer{err: errRefused}, patience: -1, min: 1, max: 1},
		{name: "a hint beyond patience is handed back at once", answer: long, min: 1, max: 1},
		{name: "the server may say that it is pointless", answer: never, min: 1, max: 1},
		{name: "a client's mistake is final", answer: envelope(http.StatusBadRequest, "bad"), min: 1, max: 1},
		{name: "a server's bug is final", answer: envelope(http.StatusInternalServerError, "bug"), min: 1, max: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := newClient(t, client.Config{Patience: tt.patience}, tt.answer)
				_, err := c.Get(t.Context(), "job_1")
				require.Error(t, err)
				require.GreaterOrEqual(t, len(s.seen), tt.min)
				require.LessOrEqual(t, len(s.seen), tt.max)
				require.LessOrEqual(t, s.seen[len(s.seen)-1].at, 10*time.Second)
			})
		})
	}
}

func TestVerbsAreRepeatedOnlyWhenTheyCannotHaveActed(t *testing.T) {
	tests := []struct {
		name   string
		first  answer
		repeat bool
	}{
		{name: "no connection", first: answer{err: errRefused}, repeat: true},
		{name: "busy", first: envelope(http.StatusServiceUnavailable, ""), repeat: true},
		{name: "too fast", first: envelope(http.StatusTooManyRequests, ""), repeat: true},
		{name: "answer lost", first: answer{err: errReset}},
		{name: "proxy gave up", first: envelope(http.StatusGatewayTimeout, "")},
		{name: "conflict", first: envelope(http.StatusConflict, "job_ended")},
	}
	verbs := map[string]func(context.Context, *client.Client) error{
		"POST /v1/jobs/job_1/cancel": func(ctx context.Context, c *client.Client) error {
			_, err := c.Cancel(ctx, "job_1")
			return err
		},
		"POST /v1/jobs/job_1/retry": func(ctx context.Context, c *client.Client) error {
			_, err := c.Retry(ctx, "job_1")
			return err
		},
		"DELETE /v1/jobs/job_1": func(ctx context.Context, c *client.Client) error {
			return c.Delete(ctx, "job_1")
		},
	}
	for _, tt := range tests {
		for path, verb := range verbs {
			t.Run(tt.name+"/"+path, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, s := newClient(t, client.Config{}, tt.first, jobIn(client.StateCanceled))
					err := verb(t.Context(), c)
					if !tt.repeat {
						require.Error(t, err)
						require.Equal(t, []string{path}, s.paths())
						return
					}
					require.NoError(t, err)
					require.Equal(t, []string{path, path}, s.paths())
				})
			})
		}
	}
}

func TestWaitAsksUntilTheJobHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := jobIn(client.StateRunning)
		held.hold = 30 * time.Second
		c, s := newClient(t, client.Config{}, jobIn(client.StateQueued), held, held, jobIn(client.StateSucceeded))
		job, err := c.Wait(t.Context(), "job_1")
		require.NoError(t, err)
		require.Equal(t, client.StateSucceeded, job.State)
		require.Equal(t, []string{
			"GET /v1/jobs/job_1", "GET /v1/jobs/job_1?wait=30s", "GET /v1/jobs/job_1?wait=30s", "GET /v1/jobs/job_1?wait=30s",
		}, s.paths())
	})
}

func TestWaitSurvivesARestartOfTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut := answer{err: errReset, hold: 20 * time.Second}
		answers := []answer{jobIn(client.StateRunning), cut}
		for range 20 { // more than a minute of refused connections
			answers = append(answers, answer{err: errRefused})
		}
		c, s := newClient(t, client.Config{}, append(answers, jobIn(client.StateFailed))...)
		job, err := c.Wait(t.Context(), "job_1")
		require.NoError(t, err)
		require.Equal(t, client.StateFailed, job.State)
		require.Greater(t, s.seen[len(s.seen)-1].at, time.Minute)
	})
}

func TestWaitGivesUpOnAServerThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newClient(t, client.Config{}, jobIn(client.StateRunning), answer{err: errRefused})
		start := time.Now()
		job, err := c.Wait(t.Context(), "job_1")
		require.ErrorIs(t, err, errRefused)
		require.Equal(t, client.StateRunning, job.State, "the job as last seen")
		require.InDelta(t, 5*time.Minute, time.Since(start), float64(10*time.Second))
	})
}

func TestWaitDoesNotHammerAServerThatIgnoresWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newClient(t, client.Config{}, jobIn(client.StateRunning))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Wait(ctx, "job_1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.LessOrEqual(t, len(s.seen), 12, "the first look, then one a second")
	})
}

func TestContextEndsACallWithItsCause(t *testing.T) {
	errLunch := errors.New("lunch")
	tests := []struct {
		name   string
		answer answer
		want   string
	}{
		{name: "inside an attempt", answer: answer{hold: time.Hour}, want: "client: GET /v1/jobs/job_1: lunch"},
		{name: "inside a pause", answer: answer{err: errRefused}, want: "client: GET /v1/jobs/job_1: lunch, after: dial tcp: connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errLunch)
				defer cancel()
				c, _ := newClient(t, client.Config{}, tt.answer)
				_, err := c.Get(ctx, "job_1")
				require.ErrorIs(t, err, errLunch)
				require.EqualError(t, err, tt.want)
			})
		})
	}
}

func TestAHungServerTimesOutAndIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := answer{hold: time.Hour}
		c, s := newClient(t, client.Config{Timeout: 3 * time.Second}, hung, jobIn(client.StateQueued))
		_, err := c.Get(t.Context(), "job_1")
		require.NoError(t, err)
		require.Len(t, s.seen, 2)

		c, _ = newClient(t, client.Config{Timeout: 3 * time.Second, Patience: -1}, hung)
		_, err = c.Get(t.Context(), "job_1")
		require.EqualError(t, err, "client: GET /v1/jobs/job_1: no answer in time")
	})
}

func TestListSelectsAndAllFollowsTheCursor(t *testing.T) {
	c, s := newClient(t, client.Config{},
		answer{status: 200, body: `{"object":"list","data":[{"id":"job_3"},{"id":"job_2"}],"has_more":true,"next":"c1"}`},
		answer{status: 200, body: `{"object":"list","data":[{"id":"job_1"}],"has_more":true,"next":"c1"}`}, // a cursor that stands still
	)
	opts := client.ListOptions{State: client.StateFailed, Kind: client.KindChat, Upstream: "a b", Limit: 2}
	var ids []string
	for job, err := range c.All(t.Context(), opts) {
		require.NoError(t, err)
		ids = append(ids, job.ID)
	}
	require.Equal(t, []string{"job_3", "job_2", "job_1"}, ids)
	require.Equal(t, []string{
		"GET /v1/jobs?kind=chat&limit=2&state=failed&upstream=a+b",
		"GET /v1/jobs?after=c1&kind=chat&limit=2&state=failed&upstream=a+b",
	}, s.paths())
}

func TestAllEndsWithItsFirstError(t *testing.T) {
	c, _ := newClient(t, client.Config{}, envelope(http.StatusUnauthorized, "no_key"))
	var errs []error
	for _, err := range c.All(t.Context(), client.ListOptions{}) {
		errs = append(errs, err)
	}
	require.Len(t, errs, 1)
	e, ok := errors.AsType[*client.APIError](errs[0])
	require.True(t, ok)
	require.Equal(t, http.StatusUnauthorized, e.Status)
}

func TestIDsCannotNameAnotherResource(t *testing.T) {
	c, s := newClient(t, client.Config{}, jobIn(client.StateQueued))
	for _, id := range []string{"", ".", ".."} {
		require.ErrorContains(t, c.Delete(t.Context(), id), "is not a job ID")
	}
	require.Empty(t, s.seen)
	require.NoError(t, c.Delete(t.Context(), "a/../b?c"))
	require.Equal(t, []string{"DELETE /v1/jobs/a%2F..%2Fb%3Fc"}, s.paths())
}

func TestAPIErrorKeepsWhatTheServerSaid(t *testing.T) {
	header := http.Header{"X-Request-Id": {"req_9"}, "Retry-After": {"90"}}
	tests := []struct {
		name   string
		answer answer
		want   client.APIError
		text   string
	}{
		{
			name:   "the envelope",
			answer: answer{status: 503, header: header, body: `{"error":{"message":"redis is away","type":"server_error","param":"kind","code":"no_redis"}}`},
			want: client.APIError{
				Status: 503, Code: "no_redis", Type: "server_error", Param: "kind", Message: "redis is away",
				RequestID: "req_9", RetryAfter: 90 * time.Second,
			},
			text: "client: 503 no_redis: redis is away (param kind) (request req_9)",
		},
		{
			name:   "nulls",
			answer: answer{status: 404, body: `{"error":{"message":"gone","type":null,"param":null,"code":null}}`},
			want:   client.APIError{Status: 404, Message: "gone"},
			text:   "client: 404: gone",
		},
		{
			name:   "a code that is a number keeps the message",
			answer: answer{status: 400, body: `{"error":{"code":7,"message":"bad"}}`},
			want:   client.APIError{Status: 400, Message: "bad"},
			text:   "client: 400: bad",
		},
		{
			name:   "a proxy's page",
			answer: answer{status: 403, body: `<html>Forbidden</html>`},
			want:   client.APIError{Status: 403, Message: "forbidden"},
			text:   "client: 403: forbidden",
		},
		{
			name:   "a status without words",
			answer: answer{status: 799},
			want:   client.APIError{Status: 799, Message: "unknown status"},
			text:   "client: 799: unknown status",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newClient(t, client.Config{Patience: -1}, tt.answer)
			_, err := c.Get(t.Context(), "job_1")
			got, ok := errors.AsType[*client.APIError](err)
			require.True(t, ok, "%T", err)
			want := tt.want
			ignore := cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "final" }, cmp.Ignore())
			if diff := cmp.Diff(&want, got, ignore); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			require.EqualError(t, err, tt.text)
		})
	}
}

func TestAnotherServersAnswerIsNotAJob(t *testing.T) {
	for _, body := range []string{"<html>", "{}", "null", "[]", `{"object":"list","data":[null]}`} {
		c, _ := newClient(t, client.Config{}, answer{status: 200, body: body})
		_, err := c.Get(t.Context(), "job_1")
		require.ErrorContains(t, err, "http://ferry.test does not answer like a Ferry server", body)
		_, err = c.List(t.Context(), client.ListOptions{})
		require.ErrorContains(t, err, "http://ferry.test does not answer like a Ferry server", body)
	}
}

// The other tests replace the transport; this one goes through a socket, with a reply that breaks off.
func TestACutReplyIsAskedForAgain(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 1 {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"id":`)
			return
		}
		_, _ = io.WriteString(w, `{"id":"job_1","object":"job","state":"queued","new_field":1}`)
	}))
	defer server.Close()
	c, err := client.New(client.Config{BaseURL: server.URL + "/"})
	require.NoError(t, err)
	job, err := c.Get(t.Context(), "job_1")
	require.NoError(t, err)
	require.Equal(t, 2, calls)
	require.JSONEq(t, `{"id":"job_1","object":"job","state":"queued","new_field":1}`, string(job.RawJSON()))
}
