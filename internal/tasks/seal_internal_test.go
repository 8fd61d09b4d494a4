package tasks

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/seal"
)

// ringOf makes a ring of keys "k" and a byte, whose secrets are that byte over and over.
func ringOf(t testing.TB, ids ...byte) *seal.Ring {
	t.Helper()
	var keys []seal.Key
	for _, b := range ids {
		k, err := seal.ParseKey("k"+string(b), hex.EncodeToString(bytes.Repeat([]byte{b}, seal.KeySize)))
		require.NoError(t, err)
		keys = append(keys, k)
	}
	r, err := seal.New(keys...)
	require.NoError(t, err)
	return r
}

// keyed is the same Redis through a process that has other keys.
func (b *bundle) keyed(t testing.TB, ring *seal.Ring) *bundle {
	t.Helper()
	other := *b
	var err error
	other.Queue, err = NewQueue(b.rdb, Config{Keys: ring}, b.watcher, discard())
	require.NoError(t, err)
	return &other
}

// stored is everything that stands in the record of a job.
func (b *bundle) stored(t testing.TB, id string) string {
	t.Helper()
	var all strings.Builder
	for field, value := range b.rdb.HGetAll(t.Context(), jobKey(id)).Val() {
		all.WriteString(field + "=" + value + "\n")
	}
	require.NotEmpty(t, all.String())
	return all.String()
}

// says400 is an upstream that quotes the prompt in its error.
func says400(context.Context, openai.Call) (*httpx.Response, error) {
	return nil, &httpx.Error{
		Class: httpx.Permanent, Reason: "http_400", Status: 400,
		Body: []byte(`{"error":{"message":"cannot answer: my secret prompt","type":"invalid_request_error"}}`),
	}
}

func TestWithKeysNothingAJobSaysIsReadableInRedis(t *testing.T) {
	b := newBundle(t).keyed(t, ringOf(t, '1'))
	h := b.handler(&upstream{answers: []answer{says(`{"answer":"my secret answer"}`), says400}}, NewCalls())
	ask := func(s *Submission) { s.Request = []byte(`{"model":"m","prompt":"my secret prompt"}`) }
	good, bad := b.submit(t, ask).ID, b.submit(t, ask).ID
	require.NoError(t, runOnce(t, h, good))
	require.ErrorIs(t, runOnce(t, h, bad), asynq.SkipRetry)
	for _, id := range []string{good, bad} {
		require.NotContains(t, b.stored(t, id), "secret")
		require.Contains(t, b.rdb.HGet(t.Context(), jobKey(id), fieldBody).Val(), "k1", "a blob names its key")
		require.NotEqual(t, "h", b.rdb.HGet(t.Context(), jobKey(id), fieldHash).Val(), "a hash can be guessed")
	}
	job := b.must(t, good)
	require.Equal(t, `{"answer":"my secret answer"}`, string(job.Result))
	require.Equal(t, `{"model":"m","prompt":"my secret prompt"}`, string(job.Request))
	require.Equal(t, "cannot answer: my secret prompt", b.must(t, bad).Failure.Message)
	page, err := b.List(t.Context(), Filter{State: Failed})
	require.NoError(t, err)
	require.Equal(t, "cannot answer: my secret prompt", page.Jobs[0].Failure.Message)
}

// A store that was plain becomes a sealed one, and its keys change, without a job being lost.
func TestPlainAndSealedJobsLiveSideBySide(t *testing.T) {
	plain := newBundle(t)
	old, now := plain.keyed(t, ringOf(t, '1')), plain.keyed(t, ringOf(t, '2', '1'))
	ids := []string{plain.submit(t).ID, old.submit(t).ID, now.submit(t).ID}
	h := now.handler(&upstream{answers: []answer{says(`{"a":1}`)}}, NewCalls())
	for _, id := range ids {
		require.NoError(t, runOnce(t, h, id))
		job := now.must(t, id)
		require.Equal(t, []string{chatBody, `{"a":1}`}, []string{string(job.Request), string(job.Result)})
	}
	require.Contains(t, plain.rdb.HGet(t.Context(), jobKey(ids[0]), fieldResult).Val(), "k2", "the first key seals")
}

func TestIdempotencyKeysWorkOverARotation(t *testing.T) {
	b := newBundle(t)
	keyed := Submission{Kind: openai.Chat, Upstream: "up", Request: []byte(chatBody), Key: "order-17", Hash: "a"}
	var id string
	for _, q := range []*bundle{b.keyed(t, ringOf(t, '1')), b.keyed(t, ringOf(t, '2', '1'))} {
		job, created, err := q.Submit(t.Context(), keyed)
		require.NoError(t, err)
		require.Equal(t, id == "", created)
		id = job.ID
	}
	other := keyed
	other.Hash = "b"
	_, _, err := b.keyed(t, ringOf(t, '2', '1')).Submit(t.Context(), other)
	var reuse *KeyReuseError
	require.ErrorAs(t, err, &reuse)
	_, _, err = b.keyed(t, ringOf(t, '2')).Submit(t.Context(), keyed)
	var unreadable *UnreadableError
	require.ErrorAs(t, err, &unreadable)
	require.Equal(t, "k1", unreadable.Key())
}

func TestSweptJobIsReadableAmongSealedOnes(t *testing.T) {
	b := newBundle(t).keyed(t, ringOf(t, '1'))
	job := b.submit(t, func(s *Submission) { s.ExpiresIn = time.Minute })
	require.NoError(t, NewCaretaker(b.Queue, []string{"up"}, held(""), discard()).sweep(t.Context(), time.Now().Add(2*time.Minute)))
	require.Equal(t, expiredFailure(""), b.must(t, job.ID).Failure, "the sweep writes plain text of its own")
}

func TestAMissingKeyIsNamed(t *testing.T) {
	b := newBundle(t)
	with, without := b.keyed(t, ringOf(t, '1')), b.keyed(t, ringOf(t, '2'))
	h := with.handler(&upstream{answers: []answer{says(`{}`), says400}}, NewCalls())
	good, bad := with.submit(t).ID, with.submit(t).ID
	require.NoError(t, runOnce(t, h, good))
	require.Error(t, runOnce(t, h, bad))
	for id, field := range map[string]string{good: fieldResult, bad: fieldError} {
		_, err := without.Get(t.Context(), id, Full)
		unreadable, ok := errors.AsType[*UnreadableError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, []string{id, field, "k1", "encryption_key_missing"}, []string{unreadable.ID, unreadable.Field, unreadable.Key(), unreadable.Reason()})
		require.ErrorContains(t, err, `there is no key "k1"`)
	}
	page, err := without.List(t.Context(), Filter{})
	require.NoError(t, err, "a list shows what it can")
	require.Len(t, page.Jobs, 2)
	require.Equal(t, "encryption_key_missing", page.Jobs[0].Failure.Code)

	_, err = without.Queue.Retry(t.Context(), bad)
	require.NoError(t, err, "what is not read is not in the way")
	require.NoError(t, without.Delete(t.Context(), good))
}

// What this worker cannot read another may: the job must lose nothing by having been here.
func TestAWorkerWithoutTheKeyPutsTheJobBack(t *testing.T) {
	b := newBundle(t)
	with, without := b.keyed(t, ringOf(t, '1')), b.keyed(t, nil)
	up := &upstream{answers: []answer{says(`{}`)}}
	tests := []struct {
		name, reason string
		change       func(id string)
	}{
		{"a key it does not have", "encryption_key_missing", func(string) {}},
		{"a form of a newer version", "needs_newer_version", func(id string) { b.rdb.HSet(t.Context(), jobKey(id), fieldBody, "\x09new") }},
		{"a body that is damaged", "record_damaged", func(id string) { b.rdb.HSet(t.Context(), jobKey(id), fieldBody, "\x01no zstd") }},
		{"a ledger of a newer version", "record_damaged", func(id string) {
			b.rdb.HSet(t.Context(), jobKey(id), fieldBody, "\x00{}", "ledger", `{"class":"invented_tomorrow"}`+"\n")
		}},
		{"a spec that is damaged", "record_damaged", func(id string) { b.rdb.HSet(t.Context(), jobKey(id), fieldBody, "\x00{}", "spec", "{") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := with.submit(t).ID
			before := b.rdb.HMGet(t.Context(), jobKey(id), fieldBody, "spec", "ledger").Val()
			tt.change(id)
			for range defaultMaxCrashes + 2 {
				var back *comeBack
				require.ErrorAs(t, runOnce(t, without.handler(up, NewCalls()), id), &back)
				require.Equal(t, newerDelay, back.delay)
			}
			require.Zero(t, up.count())
			record := b.rdb.HMGet(t.Context(), jobKey(id), "state", "why", "crashes", "lost", "attempts").Val()
			require.Equal(t, []any{"queued", tt.reason, nil, "0", nil}, record)

			b.rdb.HDel(t.Context(), jobKey(id), "ledger")
			b.rdb.HSet(t.Context(), jobKey(id), fieldBody, before[0], "spec", before[1])
			require.NoError(t, runOnce(t, with.handler(up, NewCalls()), id), "another worker runs it")
			require.Equal(t, Succeeded, with.must(t, id).State)
			up.calls = nil
		})
	}
}

func TestABlobIsOfUseInItsPlaceOnly(t *testing.T) {
	b := newBundle(t).keyed(t, ringOf(t, '1'))
	h := b.handler(&upstream{answers: []answer{says(`"mine"`), says(`"yours"`)}}, NewCalls())
	mine, yours := b.submit(t).ID, b.submit(t).ID
	require.NoError(t, runOnce(t, h, mine))
	require.NoError(t, runOnce(t, h, yours))
	theft := b.rdb.HGet(t.Context(), jobKey(yours), fieldResult).Val()
	require.NoError(t, b.rdb.HSet(t.Context(), jobKey(mine), fieldResult, theft).Err())
	_, err := b.Get(t.Context(), mine, Full)
	require.ErrorIs(t, err, seal.ErrBroken, "another job's answer")
	body := b.rdb.HGet(t.Context(), jobKey(yours), fieldBody).Val()
	require.NoError(t, b.rdb.HSet(t.Context(), jobKey(yours), fieldResult, body).Err())
	_, err = b.Get(t.Context(), yours, Full)
	require.ErrorIs(t, err, seal.ErrBroken, "the prompt for the answer")
}

func TestSealedCodec(t *testing.T) {
	c, err := newCodec(ringOf(t, '1'))
	require.NoError(t, err)
	plain, err := newCodec(nil)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		body := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 1000).Draw(t, "body"), rapid.IntRange(1, 4).Draw(t, "times"))
		packed := c.pack("job_1", fieldBody, body)
		if want := len(plain.pack("job_1", fieldBody, body)) + 1 + c.ring.Overhead(); len(packed) != want {
			t.Fatalf("%d bytes, want %d: compressed, then sealed", len(packed), want)
		}
		got, err := c.unpack("job_1", fieldBody, packed)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("got %q, %v, want %q", got, err, body)
		}
		text, err := c.unpackText("job_1", fieldHash, c.packText("job_1", fieldHash, string(body)))
		if err != nil || text != string(body) {
			t.Fatalf("got %q, %v, want %q", text, err, body)
		}
	})
}
