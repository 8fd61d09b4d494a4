package client_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/client"
)

const fullJob = `{"id":"job_1","object":"job","kind":"chat","state":"failed","upstream":"openai","priority":"default","model":"m",
 "created_at":"2026-11-23T12:00:00.123Z","finished_at":"2026-11-23T12:00:01Z",
 "attempts":2,"max_attempts":25,"snoozes":1,"crashes":0,"waiting_for":"breaker_open","metadata":{"a":"b"},
 "error":{"message":"bad","type":"t","param":null,"code":"c","class":"permanent","status":400},
 "ledger":[{"n":1,"run":1,"started_at":"2026-11-23T12:00:00.2Z","duration_ms":123,"status":500,"class":"transient","reason":"http_500","sent":true,"outcome_unknown":true,"wait_ms":250,"wait_reason":"backoff"},
  {"n":2,"run":1,"started_at":"2026-11-23T12:00:00.6Z","duration_ms":7,"sent":false,"outcome_unknown":false}]}`

func TestJobDecodesEveryField(t *testing.T) {
	var job client.Job
	require.NoError(t, json.Unmarshal([]byte(fullJob), &job))
	at := func(ms int) time.Time { return time.Date(2026, 11, 23, 12, 0, 0, ms*1e6, time.UTC) }
	want := client.Job{
		ID: "job_1", Object: "job", Kind: client.KindChat, State: client.StateFailed, Upstream: "openai",
		Priority: client.PriorityDefault, Model: "m", CreatedAt: at(123), FinishedAt: at(1000),
		Attempts: 2, MaxAttempts: 25, Snoozes: 1, WaitingFor: "breaker_open", Metadata: map[string]string{"a": "b"},
		Error: &client.JobError{Message: "bad", Type: "t", Code: "c", Class: "permanent", Status: 400},
		Ledger: []client.Attempt{
			{
				N: 1, Run: 1, StartedAt: at(200), Status: 500, Class: "transient", Reason: "http_500", Sent: true,
				OutcomeUnknown: true, WaitReason: "backoff", Duration: 123 * time.Millisecond, Wait: 250 * time.Millisecond,
			},
			{N: 2, Run: 1, StartedAt: at(600), Duration: 7 * time.Millisecond},
		},
	}
	if diff := cmp.Diff(want, job, cmpopts.IgnoreUnexported(client.Job{})); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}
}

func TestOnlyFourStatesAreTerminal(t *testing.T) {
	tests := map[client.State]bool{
		client.StateQueued: false, client.StateRunning: false, client.StateSnoozed: false, client.StateRetrying: false,
		client.StateSucceeded: true, client.StateFailed: true, client.StateCanceled: true, client.StateExpired: true,
		"": false, "of a newer server": false,
	}
	for state, want := range tests {
		require.Equal(t, want, state.Terminal(), state)
	}
}

// Whatever decodes keeps its meaning when it is written and read again.
func FuzzJob(f *testing.F) {
	f.Add([]byte(fullJob))
	f.Add([]byte(`{"id":"x","ledger":[null],"error":null,"metadata":null,"result":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var job, again client.Job
		if json.Unmarshal(data, &job) != nil {
			return
		}
		written, err := json.Marshal(job)
		if err != nil {
			return // such as a year beyond 9999, which can be read only
		}
		require.NoError(t, json.Unmarshal(written, &again))
		rewritten, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(written), string(rewritten))
	})
}
