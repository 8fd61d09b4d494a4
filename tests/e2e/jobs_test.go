package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// wantRefusal fails the test unless err is the API's refusal with a status and code.
func wantRefusal(t *testing.T, err error, status int, code string) {
	t.Helper()
	var refusal *client.APIError
	if !errors.As(err, &refusal) || refusal.Status != status || refusal.Code != code {
		t.Errorf("got %v, want %d %s", err, status, code)
	}
}

// twoUpstreams is a ferry.yaml whose second upstream, $DEAD, is one that the breaker soon gives up.
const twoUpstreams = `
jobs:
  backoff: {base: 200ms, max: 1s}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
  - name: dead
    base_url: $DEAD
    breaker: {hard_failures: 3, open_for: 20s}
    policies:
      chat: {max_attempts: 2, backoff: {base: 500ms}} # the second finds the breaker open
`

func startWithDeadUpstream(t *testing.T) *system {
	t.Helper()
	dead := upstreamtest.Start(t, upstreamtest.Config{})
	dead.Down()
	return start(t, options{workers: 1, config: strings.ReplaceAll(twoUpstreams, "$DEAD", dead.BaseURL())})
}

func TestCancelRetryDelete(t *testing.T) {
	t.Parallel() // no figures
	s := startWithDeadUpstream(t)
	ctx, c := t.Context(), s.client()

	t.Run("a queued job is canceled, retried, answered and deleted", func(t *testing.T) {
		s := s.in(t)
		later := chat("later", "")
		later.Delay = time.Hour
		job := s.submit(later)
		if job.State != client.StateQueued {
			t.Fatalf("state %s, want queued", job.State)
		}
		wantRefusal(t, c.Delete(ctx, job.ID), http.StatusConflict, "job_queued")
		canceled, err := c.Cancel(ctx, job.ID)
		if err != nil || canceled.State != client.StateCanceled {
			t.Fatalf("cancel: %v, %s", err, show(canceled))
		}
		_, err = c.Cancel(ctx, job.ID)
		wantRefusal(t, err, http.StatusConflict, "job_canceled")
		if _, err := c.Retry(ctx, job.ID); err != nil {
			t.Fatalf("retry: %v", err)
		}
		job = s.wait(job, 30*time.Second)
		wantState(t, []*client.Job{job}, client.StateSucceeded)
		_, err = c.Retry(ctx, job.ID)
		wantRefusal(t, err, http.StatusConflict, "job_succeeded")
		if err := c.Delete(ctx, job.ID); err != nil {
			t.Fatalf("delete: %v", err)
		}
		_, err = c.Get(ctx, job.ID)
		wantRefusal(t, err, http.StatusNotFound, "job_not_found")
	})

	t.Run("a running job is canceled, and its call with it", func(t *testing.T) {
		s := s.in(t)
		job := s.submit(chat("hangs", "latency=1m"))
		s.awaitState(job.ID, client.StateRunning)
		until(t, 10*time.Second, "the request is at the upstream", func() bool { return s.upstream.InFlight() == 1 })
		asked := time.Now()
		if _, err := c.Cancel(ctx, job.ID); err != nil {
			t.Fatalf("cancel: %v", err)
		}
		until(t, 10*time.Second, "the upstream sees the connection go", func() bool { return s.upstream.InFlight() == 0 })
		figure(t, "cancel_to_upstream_sees_it", time.Since(asked))
		wantState(t, []*client.Job{s.get(job.ID)}, client.StateCanceled)
	})

	t.Run("a snoozed job is canceled", func(t *testing.T) {
		s := s.in(t)
		for i := range 5 {
			r := chat(fmt.Sprintf("opens the breaker %d", i), "")
			r.Upstream = "dead"
			s.submit(r)
		}
		var job *client.Job
		until(t, 30*time.Second, "a job is snoozed", func() bool {
			page, err := c.List(ctx, client.ListOptions{State: client.StateSnoozed})
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Data) > 0 {
				job = page.Data[0]
			}
			return job != nil
		})
		if job.WaitingFor != "breaker_open" {
			t.Errorf("waits for %q, want breaker_open", job.WaitingFor)
		}
		canceled, err := c.Cancel(ctx, job.ID)
		if err != nil || canceled.State != client.StateCanceled {
			t.Fatalf("cancel: %v, %s", err, show(canceled))
		}
	})

	t.Run("a failed job is retried", func(t *testing.T) {
		s := s.in(t)
		job := s.wait(s.submit(chat("fails once", "400*1")), 30*time.Second)
		wantState(t, []*client.Job{job}, client.StateFailed)
		if job.Error == nil || job.Error.Status != http.StatusBadRequest || len(job.Ledger) != 1 {
			t.Errorf("the error or the ledger is wrong:\n%s", show(job))
		}
		if _, err := c.Retry(ctx, job.ID); err != nil {
			t.Fatalf("retry: %v", err)
		}
		job = s.wait(job, 30*time.Second)
		wantState(t, []*client.Job{job}, client.StateSucceeded)
		if len(job.Ledger) != 2 {
			t.Errorf("%d attempts in the ledger, want 2:\n%s", len(job.Ledger), show(job))
		}
	})
}

func TestTimesAreKept(t *testing.T) {
	t.Parallel() // its figures are whole seconds
	s := startWithDeadUpstream(t)

	t.Run("a delayed job does not run early", func(t *testing.T) {
		s := s.in(t)
		const delay = 2 * time.Second
		r := chat("later", "")
		r.Delay = delay
		began := time.Now()
		job := s.wait(s.submit(r), 30*time.Second)
		wantState(t, []*client.Job{job}, client.StateSucceeded)
		journal := s.upstream.Journal()
		waited := journal[len(journal)-1].Time.Sub(began)
		figure(t, "delay_2s_reached_upstream_after", waited)
		if waited < delay || waited > delay+5*time.Second {
			t.Errorf("reached the upstream after %s, want %s and little more", waited, delay)
		}
	})

	t.Run("a long poll is answered at the job's end", func(t *testing.T) {
		s := s.in(t)
		job := s.submit(chat("takes a second", "latency=1s"))
		began := time.Now()
		s.do(http.MethodGet, "/v1/jobs/"+job.ID+"?wait=30s", nil, nil)
		answered := time.Now()
		job = s.get(job.ID)
		wantState(t, []*client.Job{job}, client.StateSucceeded)
		figure(t, "long_poll_end_to_answer", answered.Sub(job.FinishedAt))
		if took := answered.Sub(began); took > 10*time.Second {
			t.Errorf("answered after %s, want soon after 1s", took)
		}
	})

	t.Run("a long poll ends with its time", func(t *testing.T) {
		s := s.in(t)
		job := s.submit(chat("takes long", "latency=1m"))
		began := time.Now()
		status, body := s.do(http.MethodGet, "/v1/jobs/"+job.ID+"?wait=1s", nil, nil)
		if took := time.Since(began); status != http.StatusOK || took < time.Second || took > 5*time.Second {
			t.Errorf("status %d after %s, want 200 after 1s: %s", status, took, body)
		}
		if _, err := s.client().Cancel(t.Context(), job.ID); err != nil {
			t.Error(err)
		}
	})

	t.Run("a job that cannot be served expires and says why", func(t *testing.T) {
		s := s.in(t)
		jobs := s.submitAll(10, func(i int) client.SubmitRequest {
			r := chat(fmt.Sprintf("too late %d", i), "")
			r.Upstream, r.ExpiresIn = "dead", 3*time.Second
			return r
		})
		for _, job := range s.waitAll(jobs, 30*time.Second) {
			wantState(t, []*client.Job{job}, client.StateExpired)
			if took := job.FinishedAt.Sub(job.CreatedAt); took > 6*time.Second {
				t.Errorf("expired after %s, want at most 3s and little more", took)
			}
			if job.Error == nil || job.Error.Code != "job_expired" || !strings.Contains(job.Error.Message, "because of") {
				t.Errorf("the error does not say what the job waited for:\n%s", show(job))
			}
		}
	})
}

// Nobody runs such a job to its end: the caretaker finds that its time is over.
func TestJobWhoseTurnNeverCameExpires(t *testing.T) {
	t.Parallel() // no figures
	s := start(t, options{workers: 1, config: `
worker: {concurrency: 1, drain: 1s}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`})
	r := chat("fails, and then has to wait its turn", "500=1")
	r.ExpiresIn = 5 * time.Second
	job := s.submit(r)
	s.awaitState(job.ID, client.StateRetrying)
	s.submit(chat("holds the only place", "latency=1m"))
	until(t, 10*time.Second, "the only place is taken", func() bool { return s.upstream.InFlight() == 1 })

	job = s.wait(job, 30*time.Second)
	wantState(t, []*client.Job{job}, client.StateExpired)
	if job.Error == nil || job.Error.Code != "job_expired" || !strings.Contains(job.Error.Message, "http_500") {
		t.Errorf("the error does not say what the job waited for:\n%s", show(job))
	}
}

func TestListShowsEachJobOnce(t *testing.T) {
	t.Parallel() // no figures
	s := start(t, options{apis: 2, workers: 1})
	const n = 300
	jobs := s.submitAll(n, func(i int) client.SubmitRequest {
		switch i % 3 {
		case 0:
			return client.SubmitRequest{Kind: client.KindEmbeddings, Request: map[string]any{
				"model": "text-embedding-3-small", "input": fmt.Sprintf("text %d", i),
			}}
		case 1:
			return chat(fmt.Sprintf("fails %d", i), "400=1")
		default:
			return chat(fmt.Sprintf("job %d", i), "")
		}
	})
	s.waitAll(jobs, time.Minute)
	tests := []struct {
		name   string
		filter client.ListOptions
		want   int
	}{
		{"all", client.ListOptions{Limit: 37}, n},
		{"all, in pages of the default size", client.ListOptions{}, n},
		{"by state", client.ListOptions{State: client.StateFailed, Limit: 9}, n / 3},
		{"by kind", client.ListOptions{Kind: client.KindEmbeddings, Limit: 100}, n / 3},
		{"by kind and state", client.ListOptions{Kind: client.KindChat, State: client.StateSucceeded, Limit: 50}, n / 3},
		{"by upstream", client.ListOptions{Upstream: upstreamName, Limit: 100}, n},
		{"none", client.ListOptions{State: client.StateRunning}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var listed []*client.Job
			seen := make(map[string]bool)
			for job, err := range s.client().All(t.Context(), tt.filter) {
				if err != nil {
					t.Fatal(err)
				}
				if seen[job.ID] {
					t.Errorf("job %s is listed twice", job.ID)
				}
				seen[job.ID] = true
				listed = append(listed, job)
			}
			if len(listed) != tt.want {
				t.Errorf("%d jobs are listed, want %d", len(listed), tt.want)
			}
			newestFirst := func(a, b *client.Job) int { return b.CreatedAt.Compare(a.CreatedAt) }
			if !slices.IsSortedFunc(listed, newestFirst) {
				t.Error("the list is not newest first")
			}
		})
	}
}
