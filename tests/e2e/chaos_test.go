package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// chaosConfig gives an attempt little time and a job many attempts. Half the attempts fail, which is just short of
// what opens the breaker; a busy machine, which lets more of them time out, may open it, so it is not open for long.
const chaosConfig = `
jobs:
  max_attempts: 50
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 500ms, max_open_for: 1s}
    policies:
      chat:
        first_byte: 500ms
        attempt: 500ms
        backoff: {base: 20ms, max: 200ms}
`

// outageConfig has a breaker that looks every 2 to 5 s whether the upstream is back.
const outageConfig = `
jobs:
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    breaker: {open_for: 2s, max_open_for: 5s, ramp: 2s}
    policies:
      chat:
        backoff: {base: 20ms, max: 200ms}
`

func TestEveryJobSurvivesChaos(t *testing.T) {
	s := start(t, options{
		apis: 2, workers: 2, config: chaosConfig,
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("500=0.3,timeout=0.1,reset=0.1"), Seed: 1},
	})
	const n = 2000
	began := time.Now()
	jobs := s.submitAll(n, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	figure(t, "chaos_submit_per_second", int(n/time.Since(began).Seconds()))
	ended := s.waitAll(jobs, 2*time.Minute)
	figure(t, "chaos_all_ended_after", time.Since(began))
	wantState(t, ended, client.StateSucceeded)

	twice, attempts, snoozes := 0, 0, 0
	for _, job := range ended {
		tally := s.upstream.Tally(job.ID)
		attempts += job.Attempts
		snoozes += job.Snoozes
		if made := countAttempts(job, sent); job.Attempts != tally.Requests || made != tally.Requests {
			t.Errorf("job %s: %d attempts, %d in its ledger, but %d requests reached the upstream:\n%s",
				job.ID, job.Attempts, made, tally.Requests, show(job))
		}
		// An answer can cross with the end of the attempt's time. Ferry cannot know; it says so in the ledger.
		if again := tally.Answers - 1; again < 0 || again > countAttempts(job, unknown) {
			t.Errorf("job %s was answered %d times, with %d attempts of unknown outcome, want once:\n%s",
				job.ID, tally.Answers, countAttempts(job, unknown), show(job))
		} else if again > 0 {
			twice++
		}
		answerOf(t, job.Result)
	}
	figure(t, "chaos_attempts_per_job", fmt.Sprintf("%.2f", float64(attempts)/n))
	figure(t, "chaos_snoozes", snoozes)
	figure(t, "chaos_answered_twice", twice)
	if strangers := len(s.upstream.Tallies()) - n; strangers != 0 {
		t.Errorf("the upstream got requests of %d jobs that nobody was told of", strangers)
	}
}

func TestOutageCostsNoJob(t *testing.T) {
	s := start(t, options{apis: 2, workers: 2, config: outageConfig})
	outage := long(8*time.Second, 30*time.Second)
	const perSecond = 40
	l := s.startLoad(perSecond)
	pass(t, 2*time.Second)

	s.upstream.Down()
	pass(t, time.Second)
	arrivals := func() int64 { return s.upstream.Requests() + s.upstream.Refused() }
	atOpen := arrivals()
	pass(t, outage-time.Second)
	probes := arrivals() - atOpen
	s.upstream.Up()
	up := time.Now()

	pass(t, 2*time.Second)
	jobs := l.stop()
	ended := s.waitAll(jobs, 2*time.Minute)
	wantState(t, ended, client.StateSucceeded)

	snoozed, most := 0, 0
	var last time.Time
	for _, job := range ended {
		if job.Snoozes > 0 {
			snoozed++
			if job.FinishedAt.After(last) {
				last = job.FinishedAt
			}
		}
		most = max(most, job.Attempts)
		if made := countAttempts(job, sent); made != job.Attempts {
			t.Errorf("job %s: %d attempts counted, %d in its ledger: a snooze must cost none:\n%s", job.ID, job.Attempts, made, show(job))
		}
	}
	if snoozed == 0 {
		t.Error("no job snoozed: the breaker did not open")
	}
	if most > 10 {
		t.Errorf("a job spent %d attempts on the outage, want at most 10", most)
	}
	// The breaker opens for 2 to 5 s and lets one call of at most three attempts find out.
	if limit := int64(outage/(2*time.Second)+1) * 3; probes > limit {
		t.Errorf("%d requests went to an upstream known to be down, want at most %d", probes, limit)
	}
	figure(t, "outage_length", outage)
	figure(t, "outage_jobs", len(jobs))
	figure(t, "outage_jobs_snoozed", snoozed)
	figure(t, "outage_requests_after_first_second", probes)
	figure(t, "outage_most_attempts_of_a_job", most)
	figure(t, "outage_end_to_last_snoozed_job", last.Sub(up))
}
