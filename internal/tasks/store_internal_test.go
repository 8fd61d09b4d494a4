package tasks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

func TestRecordKeepsWhatWasSubmitted(t *testing.T) {
	b := newBundle(t)
	runAt := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	job := b.submit(t, func(s *Submission) {
		s.Priority, s.RunAt, s.ExpiresIn, s.Retention, s.MaxAttempts = High, runAt, 2*time.Hour, 3*time.Hour, 7
		s.Metadata = map[string]string{"team": "a"}
	})
	got := b.must(t, job.ID)
	require.Equal(t, Queued, got.State)
	require.Equal(t, chatBody, string(got.Request), "the request is kept byte for byte")
	require.Equal(t, Spec{Version: 1, Kind: openai.Chat, Upstream: "up", Priority: High, Model: "gpt-4o-mini", MaxAttempts: 7, ExpiresIn: 2 * time.Hour, Retention: 3 * time.Hour, Metadata: map[string]string{"team": "a"}}, got.Spec)
	require.Equal(t, runAt, got.RunAt)
	require.Equal(t, runAt.Add(2*time.Hour), got.ExpiresAt, "the time to serve a job begins when it may run")
	require.True(t, got.DeletesAt.IsZero())
	b.in(t, job.ID, Queued)
	full, err := b.Get(t.Context(), job.ID, Full)
	require.NoError(t, err)
	require.Nil(t, full.Request)
}

func TestIdempotencyKeyIsTheJob(t *testing.T) {
	b := newBundle(t)
	keyed := func(hash string) func(*Submission) {
		return func(s *Submission) { s.Key, s.Hash = "order-17", hash }
	}
	first := b.submit(t, keyed("a"))
	sub := Submission{Kind: openai.Chat, Upstream: "up", Request: []byte(chatBody), Key: "order-17", Hash: "a"}
	again, created, err := b.Submit(t.Context(), sub)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, first.ID, again.ID)
	sub.Hash = "b"
	_, _, err = b.Submit(t.Context(), sub)
	var reuse *KeyReuseError
	require.ErrorAs(t, err, &reuse)
	require.Equal(t, first.ID, reuse.ID)
}

func TestClaimFencesOffEarlierRuns(t *testing.T) {
	b := newBundle(t)
	id := b.submit(t).ID
	first, err := b.seize(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, 1, first.Runs)
	b.in(t, id, Running)

	second, err := b.seize(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, 2, second.Runs)
	require.Equal(t, 1, second.Crashes, "a run that began and never ended is counted")
	require.Equal(t, "worker_lost", second.Ledger[0].Reason)
	require.True(t, second.Ledger[0].Unknown)
	require.Equal(t, chatBody, string(second.Request))

	end := func(job *Job, body string) error {
		_, err := b.apply(t.Context(), id, move{want: "end", from: []State{Running}, to: Succeeded, run: job.Runs, due: time.Now().Add(time.Hour), set: []any{fieldResult, b.codec.pack(id, fieldResult, []byte(body))}})
		return err
	}
	var refused *StateError
	require.ErrorAs(t, end(first, `"old"`), &refused)
	require.Equal(t, Running, refused.State)
	require.NoError(t, end(second, `"new"`))
	require.NoError(t, end(second, `"new"`), "a move whose reply was lost may be made again")
	require.ErrorAs(t, end(first, `"old"`), &refused)
	got := b.must(t, id)
	require.Equal(t, `"new"`, string(got.Result))
	require.False(t, got.DeletesAt.IsZero())
	b.in(t, id, Succeeded)

	_, err = b.seize(t.Context(), id)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, Succeeded, refused.State)
}

func TestUnknownJobs(t *testing.T) {
	b := newBundle(t)
	for _, id := range []string{newID(), "nonsense", "job_{}"} {
		_, err := b.Get(t.Context(), id, Full)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.seize(t.Context(), id)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Cancel(t.Context(), id)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Queue.Retry(t.Context(), id)
		require.ErrorIs(t, err, ErrNotFound)
		require.ErrorIs(t, b.Delete(t.Context(), id), ErrNotFound)
		_, err = b.Wait(t.Context(), id)
		require.ErrorIs(t, err, ErrNotFound)
	}
}

// model is what the record of one job must show, in plain Go.
type model struct {
	state                   State
	runs, attempts, crashes int
	retries, snoozes        int
	result                  string
}

// The scripts against the model, over random lives of a job: workers are lost, and answers of earlier runs
// arrive late. A job has at most one result, has one exactly if it succeeded, and keeps it.
func TestLifeOfAJobProperty(t *testing.T) {
	b := newBundle(t)
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		job, _, err := b.Submit(ctx, Submission{Kind: openai.Chat, Upstream: "up", Request: []byte(chatBody), Hash: "h"})
		if err != nil {
			t.Fatal(err)
		}
		m := model{state: Queued}
		end := func(t *rapid.T, run int, to State, add move) {
			add.want, add.from, add.to, add.run = "end", []State{Running}, to, run
			if to.Terminal() {
				add.due = time.Now().Add(time.Hour)
			}
			_, err := b.apply(ctx, job.ID, add)
			allowed := m.state == Running && run == m.runs || m.state == to && run == m.runs && run > 0
			if allowed != (err == nil) {
				t.Fatalf("run %d of %d: %s -> %s: %v", run, m.runs, m.state, to, err)
			}
			if err == nil && m.state == Running {
				m.state = to
				m.attempts += add.attempts
				m.retries += add.retries
				m.snoozes += add.snoozes
			}
		}
		aRun := func(t *rapid.T) int { return max(1, m.runs-rapid.IntRange(0, 3).Draw(t, "behind")) }
		deliver := func(t *rapid.T, run int) {
			body := fmt.Sprintf("answer %d of run %d", rapid.Int().Draw(t, "answer"), run)
			l := letter{Job: job.ID, Run: run, Sent: 1, Retention: time.Hour, result: b.codec.pack(job.ID, fieldResult, []byte(body))}
			_, err := b.apply(ctx, job.ID, l.move(time.Now()))
			nobodyHasIt := slices.Contains([]State{Queued, Snoozed, Retrying}, m.state)
			mine := m.state == Running && run == m.runs
			again := m.state == Succeeded && run == m.runs // taken for a repeat, which changes nothing
			if (nobodyHasIt || mine || again) != (err == nil) {
				t.Fatalf("answer of run %d of %d to a job that is %s: %v", run, m.runs, m.state, err)
			}
			if nobodyHasIt || mine {
				m.state, m.result = Succeeded, body
				m.attempts++
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"claim": func(t *rapid.T) {
				got, err := b.seize(ctx, job.ID)
				if m.state.Terminal() != (err != nil) {
					t.Fatalf("claim of %s: %v", m.state, err)
				}
				if err != nil {
					return
				}
				if m.state == Running {
					m.crashes++
				}
				m.state = Running
				m.runs++
				if got.Runs != m.runs {
					t.Fatalf("run %d, want %d", got.Runs, m.runs)
				}
			},
			"answer": func(t *rapid.T) {
				if m.runs > 0 {
					deliver(t, aRun(t))
				}
			},
			"fail": func(t *rapid.T) { end(t, aRun(t), Failed, move{attempts: 2}) },
			"retry later": func(t *rapid.T) {
				if m.state == Running || m.runs == 0 { // a repeat of the same move is success, and not in the model's interest here
					end(t, aRun(t), Retrying, move{attempts: 3, retries: 1})
				}
			},
			"snooze": func(t *rapid.T) {
				if m.state == Running || m.runs == 0 {
					end(t, aRun(t), Snoozed, move{snoozes: 1})
				}
			},
			"cancel": func(t *rapid.T) {
				_, err := b.Cancel(ctx, job.ID)
				if m.state.Terminal() == (err == nil) {
					t.Fatalf("cancel of %s: %v", m.state, err)
				}
				if err == nil {
					m.state = Canceled
				}
			},
			"revive": func(t *rapid.T) {
				_, err := b.Queue.Retry(ctx, job.ID)
				if slices.Contains(retryable, m.state) != (err == nil) {
					t.Fatalf("retry of %s: %v", m.state, err)
				}
				if err == nil {
					m = model{state: Queued, runs: m.runs, crashes: m.crashes}
				}
			},
			"": func(t *rapid.T) {
				got, err := b.Get(ctx, job.ID, Full)
				if err != nil {
					t.Fatal(err)
				}
				is := model{state: got.State, runs: got.Runs, attempts: got.Attempts, crashes: got.Crashes, retries: got.Retries, snoozes: got.Snoozes, result: string(got.Result)}
				if is != m {
					t.Fatalf("record %+v, want %+v", is, m)
				}
				if (got.State == Succeeded) != (got.Result != nil) {
					t.Fatalf("%s with result %q", got.State, got.Result)
				}
				if got.State.Terminal() == got.DeletesAt.IsZero() {
					t.Fatalf("%s deletes at %v", got.State, got.DeletesAt)
				}
				part := shard(job.ID)
				for _, s := range States() {
					in := b.rdb.ZScore(ctx, stateKey(part, s), job.ID).Err() == nil
					if in != (s == m.state) {
						t.Fatalf("%s job in index %s: %v", m.state, s, in)
					}
				}
			},
		})
	})
}

func TestSweepExpiresAndDeletes(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up"}, held(""), discard())
	waits := b.submit(t, func(s *Submission) { s.ExpiresIn = time.Minute })
	runs := b.submit(t, func(s *Submission) { s.ExpiresIn = time.Minute })
	_, err := b.seize(t.Context(), runs.ID)
	require.NoError(t, err)
	other := b.submit(t)
	snoozed := b.submit(t, func(s *Submission) { s.ExpiresIn = time.Minute })
	_, err = b.apply(t.Context(), snoozed.ID, move{want: "end", from: []State{Queued}, to: Snoozed, set: []any{"why", "breaker_open"}})
	require.NoError(t, err)

	require.NoError(t, care.sweep(t.Context(), time.Now()))
	require.Equal(t, Queued, b.must(t, waits.ID).State, "not yet")

	require.NoError(t, care.sweep(t.Context(), time.Now().Add(2*time.Minute)))
	expired := b.must(t, waits.ID)
	require.Equal(t, Expired, expired.State)
	require.Equal(t, "job_expired", expired.Failure.Code)
	require.Equal(t, expiredFailure(""), expired.Failure)
	require.Equal(t, expiredFailure("breaker_open"), b.must(t, snoozed.ID).Failure, "with the reason it waited for")
	require.False(t, expired.EndedAt.IsZero())
	b.in(t, waits.ID, Expired)
	require.Equal(t, Running, b.must(t, runs.ID).State, "a running job is left to its run")
	require.Equal(t, Queued, b.must(t, other.ID).State)

	require.NoError(t, care.sweep(t.Context(), time.Now().Add(24*time.Hour+3*time.Minute)))
	_, err = b.Get(t.Context(), waits.ID, Full)
	require.ErrorIs(t, err, ErrNotFound)
	require.Zero(t, b.rdb.Exists(t.Context(), jobKey(waits.ID)).Val())
	for _, s := range States() {
		require.Error(t, b.rdb.ZScore(t.Context(), stateKey(shard(waits.ID), s), waits.ID).Err())
	}
}

func TestSweepSaysThatTheBreakerHeldTheJob(t *testing.T) {
	b := newBundle(t)
	care := NewCaretaker(b.Queue, []string{"up", "other"}, func(upstream string) string {
		return map[string]string{"up": "breaker_open"}[upstream]
	}, discard())
	mine, others := b.submit(t), b.submit(t, func(s *Submission) { s.Upstream = "other" })
	require.NoError(t, care.sweep(t.Context(), time.Now().Add(25*time.Hour)))
	require.Equal(t, expiredFailure("breaker_open"), b.must(t, mine.ID).Failure)
	require.Equal(t, expiredFailure(""), b.must(t, others.ID).Failure)
}

func TestEndedJobIsGoneAtItsTimeEvenBeforeTheSweep(t *testing.T) {
	b := newBundle(t)
	job := b.submit(t)
	_, err := b.apply(t.Context(), job.ID, move{want: "cancel", from: open, to: Canceled, due: time.Now().Add(-time.Second)})
	require.NoError(t, err)
	_, err = b.Get(t.Context(), job.ID, Full)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestListPagesOverEverythingOnce(t *testing.T) {
	b := newBundle(t)
	created := time.Now()
	want := map[State][]string{}
	for i := range 230 {
		job := b.newJob(Submission{Kind: openai.Kinds()[i%3], Upstream: fmt.Sprintf("up%d", i%2), Request: []byte("{}")})
		job.CreatedAt = created.Add(time.Duration(i/3) * time.Microsecond) // three in each microsecond
		ok, _, err := b.create(t.Context(), job, "h")
		require.NoError(t, err)
		require.True(t, ok)
		state := Queued
		if i%5 == 0 {
			_, err := b.apply(t.Context(), job.ID, move{want: "cancel", from: open, to: Canceled, due: time.Now().Add(time.Hour)})
			require.NoError(t, err)
			state = Canceled
		}
		want[state] = append(want[state], job.ID)
	}
	all := func(f Filter) (ids []string) {
		for {
			page, err := b.List(t.Context(), f)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page.Jobs), max(f.Limit, defaultPage))
			for i, job := range page.Jobs {
				if i > 0 {
					require.False(t, job.CreatedAt.After(page.Jobs[i-1].CreatedAt), "newest first")
				}
				ids = append(ids, job.ID)
			}
			if page.Next == "" {
				return ids
			}
			f.After = page.Next
		}
	}
	for _, limit := range []int{0, 1, 7, 100} {
		require.ElementsMatch(t, slices.Concat(want[Queued], want[Canceled]), all(Filter{Limit: limit}), "limit %d", limit)
	}
	require.ElementsMatch(t, want[Canceled], all(Filter{State: Canceled, Limit: 9}))
	require.Empty(t, all(Filter{State: Failed}))
	require.Len(t, all(Filter{Kind: openai.Embeddings, Upstream: "up1", Limit: 5}), 38)
	_, err := b.List(t.Context(), Filter{After: "zzz"})
	require.ErrorIs(t, err, ErrCursor)
}

func TestWaitReturnsSoonAfterTheEnd(t *testing.T) {
	b := newBundle(t)
	for range 15 {
		job := b.submit(t)
		done := make(chan *Job, 1)
		go func() {
			got, err := b.Wait(context.Background(), job.ID)
			if err == nil {
				done <- got
			}
		}()
		for range rand.IntN(200) { // sometimes before, sometimes after the watch began
			require.NoError(t, b.Ping(t.Context()))
		}
		_, err := b.Cancel(t.Context(), job.ID)
		require.NoError(t, err)
		select {
		case got := <-done:
			require.Equal(t, Canceled, got.State)
		case <-time.After(pollInterval / 2):
			t.Fatal("the end was not announced")
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	b := newBundle(t)
	job := b.submit(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	got, err := b.Wait(ctx, job.ID)
	require.NoError(t, err)
	require.Equal(t, Queued, got.State)
	require.Empty(t, b.watcher.waiting, "a watch leaves nothing behind")
}

func TestConfigValidate(t *testing.T) {
	err := Config{MaxAttempts: -1, ExpiresIn: time.Millisecond, Retention: 48 * time.Hour, MaxRetention: 24 * time.Hour}.Validate()
	for _, key := range []string{"max_attempts", "expires_in", "retention"} {
		require.ErrorContains(t, err, key)
	}
	require.NoError(t, Config{}.WithDefaults().Validate())
}

func TestErrorsNameTheirJob(t *testing.T) {
	require.Equal(t, "tasks: job job_1: cannot cancel a job that is failed", (&StateError{ID: "job_1", State: Failed, Want: "cancel"}).Error())
	require.ErrorContains(t, &KeyReuseError{ID: "job_1"}, "job_1")
	require.False(t, errors.Is(&StateError{}, ErrNotFound))
}

func TestAttemptsOfGoesOnCounting(t *testing.T) {
	job := &Job{Runs: 3, Ledger: []Attempt{{N: 1, Sent: true}, {N: 1, Sent: false}, {N: 2, Sent: true}}}
	entries, sent := attemptsOf([]httpx.Attempt{{Sent: false, Reason: "connection_refused"}, {Sent: true, Reason: "http_500"}}, job)
	require.Equal(t, 1, sent)
	require.Equal(t, []int{2, 3}, []int{entries[0].N, entries[1].N})
	require.Equal(t, 3, entries[1].Run)
}
