package e2e_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// failing is how many jobs fail for good: more than asynq's own archive keeps of a queue, which is 9,999. The race
// detector makes it five times slower, and its run is about races.
func failing() int {
	if raceDetector {
		return long(2000, 20_000)
	}
	return long(11_000, 20_000)
}

// Every job is refused for a reason that no repetition mends. All of them stay, and can be tried again once the
// reason is gone.
func TestFaultEveryJobFails(t *testing.T) {
	fault{
		name: "every_job_fails", jobs: failing(), want: client.StateFailed,
		options: options{apis: 2, workers: 2, upstream: upstreamtest.Config{
			Faults: upstreamtest.MustParseFaults("400=1"), KeepJournal: 1,
		}},
		strike: func(*system) {}, // it has from the first job on
		limit:  5 * time.Minute,
		also: func(r *row) {
			for _, job := range r.jobs {
				if job.Error == nil || job.Error.Status != http.StatusBadRequest || job.Error.Message == "" || len(job.Ledger) != 1 {
					r.t.Fatalf("the error or the ledger is gone:\n%s", show(job))
				}
			}
			listed := 0
			for _, err := range r.client().All(r.t.Context(), client.ListOptions{State: client.StateFailed, Limit: 100}) {
				if err != nil {
					r.t.Fatal(err)
				}
				listed++
			}
			if listed != len(r.jobs) {
				r.t.Errorf("%d failed jobs are listed, want all %d", listed, len(r.jobs))
			}
			r.upstream.SetFaults(upstreamtest.Faults{})
			began := time.Now()
			r.retryAll(r.jobs)
			wantState(r.t, r.waitAll(r.jobs, 5*time.Minute), client.StateSucceeded)
			figure(r.t, "every_job_fails_retried_in", time.Since(began))
			if answers, _ := r.repeated(); answers > 0 {
				r.t.Errorf("%d answers were bought again, want none", answers)
			}
		},
	}.run(t)
}

// retryAll queues jobs once more. One that is queued already was by a first attempt that was done and not answered.
func (s *system) retryAll(jobs []*client.Job) {
	s.t.Helper()
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, job := range jobs {
		group.Go(func() error {
			_, err := s.client().Retry(s.t.Context(), job.ID)
			if refusal, ok := errors.AsType[*client.APIError](err); ok && refusal.Code == "job_queued" {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
}
