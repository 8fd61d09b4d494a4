package tasks

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestDecide(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	backoff := httpx.Backoff{Base: 2 * time.Second, Max: time.Minute, Multiplier: 2, Jitter: httpx.JitterNone}
	half := func() float64 { return 0.5 }
	job := func(change ...func(*Job)) *Job {
		j := &Job{Spec: Spec{MaxAttempts: 5}, ExpiresAt: now.Add(time.Hour)}
		for _, c := range change {
			c(j)
		}
		return j
	}
	soon := func(j *Job) { j.ExpiresAt = now.Add(time.Second) }
	envelope := []byte(`{"error":{"message":"bad key sk-abcdefghijkl","type":"invalid_request_error","param":"model","code":"model_not_found"}}`)

	tests := []struct {
		name  string
		job   *Job
		err   *httpx.Error
		sent  int
		state State
		delay time.Duration
		why   string
		code  string // of the failure
	}{
		{name: "an answer succeeds", job: job(), sent: 1, state: Succeeded},
		{
			name: "a permanent failure ends the job with the upstream's code", job: job(), sent: 1,
			err: &httpx.Error{Class: httpx.Permanent, Reason: "http_404", Status: 404, Body: envelope}, state: Failed, why: "http_404", code: "model_not_found",
		},
		{
			name: "a permanent failure without a body has the reason as code", job: job(), sent: 1,
			err: &httpx.Error{Class: httpx.Permanent, Reason: "tls_certificate"}, state: Failed, why: "tls_certificate", code: "tls_certificate",
		},
		{name: "what nobody has classified is not repeated", job: job(), err: &httpx.Error{Reason: "odd"}, state: Failed, why: "odd", code: "odd"},
		{
			name: "a transient failure comes back after the first step", job: job(), sent: 3,
			err: &httpx.Error{Class: httpx.Transient, Reason: "http_503"}, state: Retrying, delay: 2 * time.Second, why: "http_503",
		},
		{
			name: "the step grows with the runs that ended so", job: job(func(j *Job) { j.Retries = 3 }), sent: 1,
			err: &httpx.Error{Class: httpx.Transient, Reason: "http_503"}, state: Retrying, delay: 16 * time.Second, why: "http_503",
		},
		{
			name: "a longer hint wins over the step", job: job(), sent: 1,
			err: &httpx.Error{Class: httpx.Throttled, Reason: "http_429", Wait: 30 * time.Second}, state: Retrying, delay: 30 * time.Second, why: "http_429",
		},
		{
			name: "the last attempt ends the job", job: job(func(j *Job) { j.Attempts = 3 }), sent: 2,
			err: &httpx.Error{Class: httpx.Transient, Reason: "http_500", Status: 500}, state: Failed, why: "attempts_spent", code: "http_500",
		},
		{
			name: "an attempt that never reached the upstream spends none", job: job(func(j *Job) { j.Attempts = 4 }), sent: 0,
			err: &httpx.Error{Class: httpx.Transient, Reason: "connection_refused"}, state: Retrying, delay: 2 * time.Second, why: "connection_refused",
		},
		{
			name: "a refusal snoozes with a spread as long as its hint", job: job(func(j *Job) { j.Attempts = 5 }),
			err: &httpx.Error{Class: httpx.Refused, Reason: "breaker_open", Wait: 8 * time.Second}, state: Snoozed, delay: 12 * time.Second, why: "breaker_open",
		},
		{
			name: "a refusal without a hint snoozes for a little", job: job(),
			err: &httpx.Error{Class: httpx.Refused, Reason: "pool_exhausted"}, state: Snoozed, delay: 3 * time.Second, why: "pool_exhausted",
		},
		{
			name: "a short hint is still spread over a second", job: job(),
			err: &httpx.Error{Class: httpx.Refused, Reason: "breaker_open", Wait: 100 * time.Millisecond}, state: Snoozed, delay: 600 * time.Millisecond, why: "breaker_open",
		},
		{
			name: "a canceled call goes back at once", job: job(), sent: 1,
			err: &httpx.Error{Class: httpx.Canceled, Reason: "canceled"}, state: Queued, why: "canceled",
		},
		{
			name: "a retry that would come too late expires the job", job: job(soon), sent: 1,
			err: &httpx.Error{Class: httpx.Transient, Reason: "http_503"}, state: Expired, why: "http_503", code: "job_expired",
		},
		{
			name: "a snooze that would end too late expires the job", job: job(soon),
			err: &httpx.Error{Class: httpx.Refused, Reason: "breaker_open", Wait: time.Minute}, state: Expired, why: "breaker_open", code: "job_expired",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(tt.job, tt.err, tt.sent, patience{backoff: backoff, now: now, rnd: half})
			require.Equal(t, tt.state, got.state)
			require.Equal(t, tt.delay, got.delay)
			require.Equal(t, tt.why, got.reason)
			if tt.code == "" {
				require.Nil(t, got.failure)
				return
			}
			require.NotNil(t, got.failure)
			require.Equal(t, tt.code, got.failure.Code)
			require.NotEmpty(t, got.failure.Message)
			require.NotContains(t, got.failure.Message, "sk-abc", "a credential in the upstream's words is blanked")
		})
	}
}

func TestDecideWithoutCall(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct {
		name   string
		change func(*Job)
		state  State // "": the call is made
		why    string
	}{
		{"a job like any other is called for", func(*Job) {}, "", ""},
		{"one of a newer version waits for a newer worker", func(j *Job) { j.Version = specVersion + 1 }, Queued, "needs_newer_worker"},
		{"one that cannot be read waits for who can", func(j *Job) { j.unreadable = &UnreadableError{cause: errNewerForm} }, Queued, "needs_newer_version"},
		{"one that crashes its runs fails", func(j *Job) { j.lost = 5 }, Failed, "job_crashes_worker"},
		{"a crash less and it runs", func(j *Job) { j.lost = 4 }, "", ""},
		{"one whose time is over expires", func(j *Job) { j.ExpiresAt = now }, Expired, ""},
		{"one without attempts left fails", func(j *Job) { j.Attempts = 3 }, Failed, "attempts_spent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := &Job{Spec: Spec{Version: specVersion, MaxAttempts: 3}, ExpiresAt: now.Add(time.Second)}
			tt.change(job)
			d, decided := decideWithoutCall(job, 5, now)
			require.Equal(t, tt.state != "", decided)
			require.Equal(t, []any{tt.state, tt.why}, []any{d.state, d.reason})
			require.Equal(t, d.state.Terminal(), d.failure != nil, "an ended job says why")
		})
	}
}

func TestDecideCrash(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	backoff := httpx.Backoff{Base: 2 * time.Second, Max: time.Minute, Multiplier: 2, Jitter: httpx.JitterNone}
	tests := []struct {
		name    string
		before  int // crashes in a row
		limit   int
		expires time.Duration
		want    decision
	}{
		{"the first panic is retried", 0, 5, time.Hour, decision{state: Retrying, delay: 2 * time.Second, reason: panicReason, crashed: true}},
		{"the wait grows with the crashes in a row", 3, 5, time.Hour, decision{state: Retrying, delay: 16 * time.Second, reason: panicReason, crashed: true}},
		{"the last one ends the job", 4, 5, time.Hour, decision{state: Failed, reason: "job_crashes_worker", failure: crashFailure(5), crashed: true}},
		{"a limit of one retries nothing", 0, 1, time.Hour, decision{state: Failed, reason: "job_crashes_worker", failure: crashFailure(1), crashed: true}},
		{"a retry that would come too late expires the job", 0, 5, time.Second, decision{state: Expired, reason: panicReason, failure: expiredFailure(panicReason), crashed: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := &Job{lost: tt.before, ExpiresAt: now.Add(tt.expires)}
			require.Equal(t, tt.want, decideCrash(job, tt.limit, patience{backoff: backoff, now: now, rnd: func() float64 { return 0 }}))
		})
	}
}

// Every class must have been thought of: a new one that nobody maps would end jobs.
func TestDecideIsTotal(t *testing.T) {
	for class := httpx.Unclassified; class <= httpx.Canceled; class++ {
		d := decide(&Job{Spec: Spec{MaxAttempts: 1}, ExpiresAt: time.Now().Add(time.Hour)}, &httpx.Error{Class: class, Reason: "x"}, 0,
			patience{backoff: DefaultBackoff(), now: time.Now(), rnd: func() float64 { return 0 }})
		require.True(t, d.state.Valid(), class)
		require.Equal(t, d.state.Terminal(), d.failure != nil, "an ended job says why: %s", class)
	}
}

// A code is logged, so a sentence in its place is not taken for one.
func TestACodeIsNoSentence(t *testing.T) {
	for code, want := range map[string]string{
		`"context_length_exceeded"`: "context_length_exceeded", `429`: "429", `"rate-limit.v2"`: "rate-limit.v2",
		`"cannot answer: my secret"`: "http_400", `""`: "http_400", `null`: "http_400", `"` + strings.Repeat("x", 65) + `"`: "http_400",
	} {
		f := failureOf(&httpx.Error{Class: httpx.Permanent, Reason: "http_400", Status: 400, Body: []byte(`{"error":{"message":"m","code":` + code + `}}`)}, 0)
		require.Equal(t, want, f.Code, code)
		require.Equal(t, "m", f.Message)
	}
}

func TestCeilSecond(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 5, 0, time.UTC)
	require.Equal(t, at, ceilSecond(at))
	require.Equal(t, at.Add(time.Second), ceilSecond(at.Add(time.Nanosecond)))
	require.Equal(t, at.Add(time.Second), ceilSecond(at.Add(999*time.Millisecond)))
}

func TestRetryDelayNeverComesEarly(t *testing.T) {
	for _, want := range []time.Duration{time.Millisecond, 900 * time.Millisecond, 1500 * time.Millisecond, time.Minute} {
		before := time.Now()
		got := retryDelay(0, &comeBack{delay: want, state: Snoozed}, nil)
		// asynq adds the delay to its own, later now and drops the fraction of the second.
		runs := time.Now().Add(got).Truncate(time.Second)
		require.False(t, runs.Before(before.Add(want)), "asked for %s", want)
		require.Less(t, got, want+time.Second+time.Millisecond)
	}
	require.Zero(t, retryDelay(0, &comeBack{state: Queued}, nil), "a drained job does not wait")
}
