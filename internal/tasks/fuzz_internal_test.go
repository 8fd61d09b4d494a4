package tasks

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// FuzzTask looks for a payload of asynq that stops a worker, or makes it call for a job that is none.
func FuzzTask(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `{}`, `{"v":1,"job":"job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b"}`, `{"v":9,"job":"x","more":[]}`, `{"job":{}}`, `{"v":"1","job":"job_{}"}`,
	} {
		f.Add([]byte(seed))
	}
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: unreachable, MaxRetries: -1})
	f.Cleanup(func() { _ = rdb.Close() })
	queue, err := NewQueue(rdb, Config{}, NewWatcher(rdb, discard()), discard())
	require.NoError(f, err)
	up := &upstream{answers: []answer{says(`{}`)}}
	h := NewHandler(HandlerConfig{Queue: queue, Upstream: up, Concurrency: 1, Calls: NewCalls(), Fleet: NewFleet(rdb), Log: discard()})
	h.shut() // it does not wait for Redis to come
	f.Fuzz(func(t *testing.T, payload []byte) {
		var back *comeBack
		err := h.ProcessTask(t.Context(), asynq.NewTask(taskType, payload))
		switch {
		case err == nil: // no job can have the ID
		case errors.Is(err, asynq.SkipRetry): // not ours
		default:
			require.ErrorAs(t, err, &back)
			require.Contains(t, []string{"redis_unavailable", "worker_draining"}, back.reason, "a job may have the ID")
		}
		require.Zero(t, up.count())
	})
}

func unreachable(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("no redis")
}

// FuzzRecord looks for a record that stops whoever reads it. What can be read of it must be fit to be written again.
func FuzzRecord(f *testing.F) {
	spec := `{"v":1,"kind":"chat","upstream":"up","priority":"high","max_attempts":25,"expires_in":86400000000000,"retention":86400000000000,"metadata":{"a":"b"}}`
	f.Add("queued", spec, "", "", "\x00{}", "946684800000000")
	f.Add("failed", `{"v":2,"kind":7}`, `{"n":1,"class":"ok"}`+"\n", `{"message":"m","param":null}`, "\x01(\xb5/\xfd", "-1")
	f.Add("succeeded", `{`, "{}\n{}", "null", "\x02\x02k1", "9223372036854775807")
	f.Add("", "", "", "", "", "")
	store, err := NewStore(nil, ringOf(f, '1'))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, state, spec, ledger, failure, body, stamp string) {
		job, err := store.decode("job_1", map[string]string{
			"state": state, "spec": spec, "ledger": ledger, fieldError: failure, fieldBody: body, fieldResult: body,
			"created": stamp, "due": stamp, "attempts": stamp, "runs": stamp,
		})
		if state == "" {
			require.ErrorIs(t, err, ErrNotFound)
			return
		}
		require.NoError(t, err)
		if job.unreadable != nil {
			require.NotEmpty(t, job.unreadable.Reason())
			require.NotEmpty(t, job.unreadable.Error())
			return
		}
		_, err = encodeLedger(job.Ledger)
		require.NoError(t, err)
		require.Equal(t, string(job.Request), string(job.Result), "one form, one text")
	})
}

// FuzzUnpack looks for a stored text that is read as something it does not say, or opens without having been sealed.
func FuzzUnpack(f *testing.F) {
	c, err := newCodec(ringOf(f, '1'))
	require.NoError(f, err)
	plain, err := newCodec(nil)
	require.NoError(f, err)
	for _, body := range []string{"", "x", string(prose(1000))} {
		f.Add(c.pack("job_1", fieldBody, []byte(body)))
		f.Add(plain.pack("job_1", fieldBody, []byte(body)))
	}
	f.Add([]byte{packedSealed})
	f.Add([]byte{9})
	f.Fuzz(func(t *testing.T, stored []byte) {
		body, err := c.unpack("job_1", fieldBody, stored)
		if err != nil {
			e := &UnreadableError{cause: err}
			require.Contains(t, []string{"encryption_key_missing", "needs_newer_version", "record_damaged"}, e.Reason())
			return
		}
		again, err := c.unpack("job_1", fieldBody, c.pack("job_1", fieldBody, body))
		require.NoError(t, err)
		require.Equal(t, string(body), string(again))
		_, err = c.unpack("job_2", fieldBody, stored)
		sealed := len(stored) > 0 && stored[0] == packedSealed
		require.Equal(t, sealed, err != nil, "what is sealed opens in its place only")
	})
}

// FuzzDecide looks for an outcome of a call after which a job is nowhere.
func FuzzDecide(f *testing.F) {
	f.Add(uint8(httpx.Transient), int64(time.Second), 3, 2, []byte(`{"error":{"message":"m"}}`))
	f.Add(uint8(httpx.Refused), int64(-1), 0, 0, []byte("<html>"))
	f.Add(uint8(200), int64(1<<63-1), -1, 1000, []byte{})
	f.Fuzz(func(t *testing.T, class uint8, wait int64, attempts, sent int, body []byte) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		job := &Job{ID: "job_1", Spec: Spec{MaxAttempts: 25}, Attempts: attempts, ExpiresAt: now.Add(time.Hour)}
		if wait > int64(httpx.Policy{}.WithDefaults().MaxHint) {
			return // a longer one is cut before it gets here
		}
		e := &httpx.Error{Class: httpx.Class(class), Reason: "r", Wait: time.Duration(wait), Body: body}
		d := decide(job, e, sent, patience{backoff: DefaultBackoff(), now: now, rnd: func() float64 { return 0.5 }})
		require.True(t, d.state.Valid())
		require.NotEqual(t, Succeeded, d.state)
		require.GreaterOrEqual(t, d.delay, time.Duration(0))
		require.Equal(t, d.state == Failed || d.state == Expired, d.failure != nil, "who ends without an answer is told why")
		if d.failure != nil {
			require.Regexp(t, codeForm, d.failure.Code)
		}
	})
}
