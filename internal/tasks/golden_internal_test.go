package tasks

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

var update = flag.Bool("update", false, "write the golden files of this version anew")

// changed is what a developer is told whose change shows in Redis.
const changed = `what stands in Redis has changed. Jobs of the last version must still be read, and its workers must read the new
ones or leave them alone. If they can read them, run this test with -update. If not, raise specVersion, make a new
testdata/v%d with -update, and leave the old files as they are.`

// virtual runs a test in a bubble, whose clock always begins at the same time, on a miniredis.
func virtual(t *testing.T, cfg Config, test func(t *testing.T, b *bundle)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sea{server: miniredis.NewMiniRedis()}
		rdb := s.client()
		t.Cleanup(func() {
			require.NoError(t, rdb.Close())
			s.server.Close()
		})
		b := &bundle{rdb: rdb, watcher: NewWatcher(rdb, discard())}
		var err error
		b.Queue, err = NewQueue(rdb, cfg, b.watcher, discard())
		require.NoError(t, err)
		test(t, b)
	})
}

// lives are ways for a job to go. Each leaves a record of other fields and forms.
func lives() map[string]func(t *testing.T, b *bundle, id string) {
	run := func(answers ...answer) func(*testing.T, *bundle, string) {
		return func(t *testing.T, b *bundle, id string) {
			h := b.handler(&upstream{answers: answers}, NewCalls())
			h.fleet.name = "worker"
			for range answers {
				_ = runOnce(t, h, id) // what asynq is told does not stand in the record
			}
		}
	}
	answered := says(`{"answer":"` + strings.Repeat("well, ", 200) + `"}`)
	return map[string]func(t *testing.T, b *bundle, id string){
		"queued":    func(*testing.T, *bundle, string) {},
		"retrying":  run(fails(httpx.Transient, "http_500", true, true)),
		"succeeded": run(fails(httpx.Throttled, "http_429", true), answered),
		"failed":    run(says400),
		"sealed":    run(answered),
		"canceled": func(t *testing.T, b *bundle, id string) {
			_, err := b.claim(t.Context(), id, "worker/1/1", 0)
			require.NoError(t, err)
			_, err = b.Cancel(t.Context(), id)
			require.NoError(t, err)
		},
		"crashed": func(t *testing.T, b *bundle, id string) {
			_, err := b.claim(t.Context(), id, "worker/1/1", 0)
			require.NoError(t, err)
			_, err = b.claim(t.Context(), id, "another/1/1", 1)
			require.NoError(t, err)
		},
		"expired": func(t *testing.T, b *bundle, _ string) {
			require.NoError(t, NewCaretaker(b.Queue, []string{"up"}, held("breaker_open"), discard()).sweep(t.Context(), time.Now().Add(3*time.Hour)))
		},
	}
}

// live lets a job go one of those ways.
func live(t *testing.T, name string, check func(t *testing.T, b *bundle, id string)) {
	t.Helper()
	cfg := Config{}
	if name == "sealed" {
		cfg.Keys = ringOf(t, '1')
	}
	virtual(t, cfg, func(t *testing.T, b *bundle) {
		job := b.submit(t, func(s *Submission) {
			s.Key, s.Metadata, s.ExpiresIn = name, map[string]string{"team": "a"}, 2*time.Hour
			s.Request = []byte(`{"model":"m","prompt":"` + strings.Repeat("say ", 200) + `"}`)
			if name == "queued" {
				s.Request, s.RunAt = []byte(chatBody), time.Now().Add(time.Hour)
			}
		})
		lives()[name](t, b, job.ID)
		check(t, b, job.ID)
	})
}

// TestStoredFormIsTheGoldenOne finds a change of what is written. Golden files are rewritten only with -update.
func TestStoredFormIsTheGoldenOne(t *testing.T) {
	dir := filepath.Join("testdata", fmt.Sprintf("v%d", specVersion))
	for name := range lives() {
		t.Run(name, func(t *testing.T) {
			live(t, name, func(t *testing.T, b *bundle, id string) {
				file := filepath.Join(dir, name+".record")
				record := b.rdb.HGetAll(t.Context(), jobKey(id)).Val()
				if *update {
					require.NoError(t, os.MkdirAll(dir, 0o750))
					require.NoError(t, os.WriteFile(file, []byte(formatRecord(record)), 0o600))
				}
				golden := readRecord(t, file)
				require.Equal(t, slices.Sorted(maps.Keys(golden)), slices.Sorted(maps.Keys(record)), changed, specVersion+1)
				for field, want := range golden {
					require.Equal(t, b.comparable(t, want), b.comparable(t, record[field]), "field %s: "+changed, field, specVersion+1)
				}
			})
		})
	}
	payload := filepath.Join(dir, "task.json")
	const id = "job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b"
	written := task{Version: specVersion, Job: id}.encode()
	if *update {
		require.NoError(t, os.WriteFile(payload, written, 0o600))
	}
	golden, err := os.ReadFile(payload)
	require.NoError(t, err)
	require.Equal(t, string(golden), string(written), changed, specVersion+1)
}

// TestAnswerOnDiskIsTheGoldenOne does the same for the file in which an answer waits while Redis is away. The next process
// to read it may be of another version.
func TestAnswerOnDiskIsTheGoldenOne(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	want := &letter{
		Version: letterVersion, Job: "job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b", Kind: openai.Chat, Upstream: "up", CreatedAt: at,
		Retention: time.Hour, Snoozes: 1, Run: 2, Sent: 1,
		Ledger: []Attempt{{N: 1, Run: 2, StartedAt: at, DurationMS: 7, Status: 200, Class: httpx.OK, Reason: "ok", Sent: true}},
		result: []byte("the packed\nanswer"),
	}
	written, err := want.encode()
	require.NoError(t, err)
	newest := filepath.Join("testdata", fmt.Sprintf("letter-v%d", letterVersion))
	if *update {
		require.NoError(t, os.WriteFile(newest, written, 0o600))
	}
	golden, err := os.ReadFile(newest)
	require.NoError(t, err)
	require.Equal(t, string(golden), string(written), "the form of an answer on disk has changed: if an older worker cannot deliver it, raise letterVersion; then -update")

	files, err := filepath.Glob("testdata/letter-v*")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		got, err := decodeLetter(text)
		require.NoError(t, err, file)
		got.Version = letterVersion
		require.Equal(t, want, got, file)
	}
}

// comparable is a stored text by which two can be told apart: two that say the same may differ in how well they are
// compressed, and do differ when they are sealed.
func (b *bundle) comparable(t *testing.T, stored string) string {
	t.Helper()
	switch {
	case strings.HasPrefix(stored, "\x01\x28\xb5\x2f\xfd"): // zstd's magic number, RFC 8878
		text, err := b.codec.decompress([]byte(stored))
		require.NoError(t, err)
		return "zstd " + string(text)
	case strings.HasPrefix(stored, "\x02"):
		return fmt.Sprintf("sealed %q", stored[:4])
	default:
		return stored
	}
}

// TestRecordsOfEveryVersionAreRead reads the golden files of all versions. The lives in them are the same ones, so the
// jobs are too.
func TestRecordsOfEveryVersionAreRead(t *testing.T) {
	files, err := fs.Glob(os.DirFS("testdata"), "v*/*.record")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(lives()))
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			name := strings.TrimSuffix(filepath.Base(file), ".record")
			golden := readRecord(t, filepath.Join("testdata", file))
			live(t, name, func(t *testing.T, b *bundle, id string) {
				now := b.must(t, id)
				require.NoError(t, b.rdb.Del(t.Context(), jobKey(id)).Err())
				require.NoError(t, b.rdb.HSet(t.Context(), jobKey(id), golden).Err())
				then := b.must(t, id)
				then.Version = now.Version
				require.Equal(t, now, then)
				require.NotEmpty(t, then.Request)
			})
		})
	}
}

// formatRecord writes a record so that people can read it and diff can compare it.
func formatRecord(record map[string]string) string {
	var b strings.Builder
	for _, field := range slices.Sorted(maps.Keys(record)) {
		fmt.Fprintf(&b, "%s %+q\n", field, record[field])
	}
	return b.String()
}

func readRecord(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	record := map[string]string{}
	for line := range strings.Lines(string(text)) {
		field, quoted, _ := strings.Cut(strings.TrimSpace(line), " ")
		record[field], err = strconv.Unquote(quoted)
		require.NoError(t, err, line)
	}
	return record
}

// During an upgrade old workers and APIs meet what new ones have written.
func TestFieldsOfANewerVersionArePassedOver(t *testing.T) {
	b := newBundle(t)
	id := b.submit(t).ID
	more := func(object string) string { return strings.Replace(object, "{", `{"invented_tomorrow":{"a":[1]},`, 1) }
	spec := b.rdb.HGet(t.Context(), jobKey(id), "spec").Val()
	require.NoError(t, b.rdb.HSet(t.Context(), jobKey(id), "spec", more(spec), "invented_tomorrow", "x",
		"ledger", more(`{"n":1,"run":1,"class":"transient","sent":true}`)+"\n", fieldError, more(encodeFailure(expiredFailure("")))).Err())
	job := b.must(t, id)
	require.Equal(t, "up", job.Upstream)
	require.True(t, job.Ledger[0].Sent)
	require.Equal(t, expiredFailure(""), job.Failure)
	up := &upstream{answers: []answer{says(`{}`)}}
	h := b.handler(up, NewCalls())
	payload := more(string(task{Version: specVersion + 1, Job: id}.encode()))
	require.NoError(t, h.ProcessTask(t.Context(), asynq.NewTask(taskType, []byte(payload))))
	require.Equal(t, Succeeded, b.must(t, id).State)
	require.Equal(t, "x", b.rdb.HGet(t.Context(), jobKey(id), "invented_tomorrow").Val(), "what is not known is not lost")
}

// A spec of a newer version may have fields of other types, which is why its version was raised.
func TestAJobOfANewerVersionIsShownAndLeftAlone(t *testing.T) {
	b := newBundle(t)
	id := b.submit(t).ID
	spec := fmt.Sprintf(`{"v":%d,"kind":"vision","upstream":"up","priority":"default","max_attempts":{"sent":25},"retention":3600000000000}`, specVersion+1)
	require.NoError(t, b.rdb.HSet(t.Context(), jobKey(id), "spec", spec, fieldBody, "\x09new form").Err())
	up := &upstream{answers: []answer{says(`{}`)}}
	for range defaultMaxCrashes + 1 {
		var back *comeBack
		require.ErrorAs(t, runOnce(t, b.handler(up, NewCalls()), id), &back)
		require.Equal(t, newerDelay, back.delay)
	}
	require.Zero(t, up.count())
	job, err := b.Get(t.Context(), id, Full)
	require.NoError(t, err)
	require.Equal(t, []any{Queued, openai.Kind("vision"), "up", "needs_newer_worker"}, []any{job.State, job.Kind, job.Upstream, job.WaitingOn})
	page, err := b.List(t.Context(), Filter{})
	require.NoError(t, err)
	require.Len(t, page.Jobs, 1)
}
