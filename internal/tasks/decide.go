package tasks

import (
	"fmt"
	"regexp"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// decision is what becomes of a job after a run.
type decision struct {
	state   State
	delay   time.Duration // before the next run; Snoozed, Retrying and Queued only
	reason  string        // why the job waits or ended
	failure *Failure      // Failed and Expired only
	crashed bool          // the run did not come to its end
}

// patience is what decide needs to know besides the outcome.
type patience struct {
	backoff httpx.Backoff // between runs
	now     time.Time
	rnd     func() float64 // in [0, 1)
}

// firstSnooze is how long a refused job waits when the refusal gave no time.
const firstSnooze = 2 * time.Second

// decide maps the outcome of a run's call to the job's next state. It is the only place that knows both
// what a class of failure means and what the queue can do. sent is how many attempts of this call
// reached the upstream.
//
//	class       next state
//	(answer)    succeeded
//	permanent   failed
//	transient   retrying, while attempts and time are left; else failed or expired
//	throttled   retrying, likewise, not before the upstream's own hint
//	refused     snoozed: not sent, so no attempt is spent
//	canceled    queued: the process is going away, another takes the job at once
func decide(job *Job, callErr *httpx.Error, sent int, p patience) decision {
	if callErr == nil {
		return decision{state: Succeeded}
	}
	switch callErr.Class {
	case httpx.Canceled:
		return decision{state: Queued, reason: callErr.Reason}
	case httpx.Refused:
		return inTime(job, p.now, decision{state: Snoozed, delay: snoozeFor(callErr.Wait, p.rnd), reason: callErr.Reason})
	case httpx.Transient, httpx.Throttled:
		if job.Attempts+sent >= job.MaxAttempts {
			return decision{state: Failed, reason: "attempts_spent", failure: failureOf(callErr, job.Attempts+sent)}
		}
		delay := max(callErr.Wait, p.backoff.Wait(job.Retries+1, p.rnd))
		return inTime(job, p.now, decision{state: Retrying, delay: delay, reason: callErr.Reason})
	default: // permanent, and whatever nobody has classified
		return decision{state: Failed, reason: callErr.Reason, failure: failureOf(callErr, 0)}
	}
}

// newerDelay is how long a job waits for another worker that this one cannot read, for want of a key or because a
// newer version wrote it.
const newerDelay = 30 * time.Second

// decideWithoutCall decides about a job for which no call is to be made.
func decideWithoutCall(job *Job, maxCrashes int, now time.Time) (d decision, decided bool) {
	switch {
	case job.Version > specVersion:
		return decision{state: Queued, delay: newerDelay, reason: "needs_newer_worker"}, true
	case job.unreadable != nil:
		return decision{state: Queued, delay: newerDelay, reason: job.unreadable.Reason()}, true
	case job.lost >= maxCrashes:
		return decision{state: Failed, reason: "job_crashes_worker", failure: crashFailure(job.lost)}, true
	case !now.Before(job.ExpiresAt):
		return decision{state: Expired, failure: expiredFailure("")}, true
	case job.Attempts >= job.MaxAttempts:
		return decision{state: Failed, reason: "attempts_spent", failure: &Failure{
			Message: fmt.Sprintf("Gave up after %d attempts.", job.Attempts), Type: "job_error", Code: "attempts_spent",
		}}, true
	default:
		return decision{}, false
	}
}

// decideCrash is decide for a run that panicked. It counts like one whose worker was lost: after limit of
// them in a row the job itself is taken for the cause.
func decideCrash(job *Job, limit int, p patience) decision {
	crashes := job.lost + 1
	if crashes >= limit {
		return decision{state: Failed, reason: "job_crashes_worker", failure: crashFailure(crashes), crashed: true}
	}
	d := inTime(job, p.now, decision{state: Retrying, delay: p.backoff.Wait(crashes, p.rnd), reason: panicReason})
	d.crashed = true
	return d
}

// panicReason is why a job waits whose run panicked, and what its ledger says.
const panicReason = "run_panicked"

// snoozeFor spreads the return of many refused jobs over as long again as they were asked to wait.
func snoozeFor(hint time.Duration, rnd func() float64) time.Duration {
	if hint <= 0 {
		hint = firstSnooze
	}
	return hint + time.Duration(rnd()*float64(max(hint, time.Second)))
}

// inTime turns a wait that would end after the job's time into the end of the job.
func inTime(job *Job, now time.Time, d decision) decision {
	if now.Add(d.delay).Before(job.ExpiresAt) {
		return d
	}
	return decision{state: Expired, reason: d.reason, failure: expiredFailure(d.reason)}
}

func expiredFailure(reason string) *Failure {
	msg := "The job was not served before it expired."
	if reason != "" {
		msg = fmt.Sprintf("The job was not served before it expired; it last waited because of %s.", reason)
	}
	return &Failure{Message: msg, Type: "job_error", Code: "job_expired"}
}

// crashFailure names no cause: a panic's text may quote the request, and it is in the worker's log.
func crashFailure(crashes int) *Failure {
	return &Failure{
		Message: fmt.Sprintf("%d runs of this job in a row ended with a panic or with the loss of their worker; the workers' logs have the cause.", crashes),
		Type:    "job_error", Code: "job_crashes_worker",
	}
}

// unreadableFailure stands in a list for a reason that cannot be read.
func unreadableFailure(e *UnreadableError) *Failure {
	return &Failure{Message: "The reason cannot be read by this server.", Type: "job_error", Code: e.Reason()}
}

// codeForm is what a code may look like to be taken for one: it is logged, and a sentence may quote the prompt.
var codeForm = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// failureOf turns the last error of a call into what the client is shown: the upstream's own words where
// it has any. attempts is how many were spent if that is why the job failed, else 0.
func failureOf(e *httpx.Error, attempts int) *Failure {
	f := &Failure{Type: "upstream_error", Code: e.Reason, Class: e.Class.String(), Status: e.Status}
	if said, ok := openai.ParseError(e.Body); ok {
		f.Message, f.Param = said.Message, said.Param
		if said.Type != "" {
			f.Type = said.Type
		}
		if said.Code != nil && codeForm.MatchString(*said.Code) {
			f.Code = *said.Code
		}
	}
	switch {
	case f.Message != "":
	case e.Status != 0:
		f.Message = fmt.Sprintf("The upstream answered with status %d.", e.Status)
	default:
		f.Message = fmt.Sprintf("The upstream gave no usable answer: %s.", e.Reason)
	}
	if attempts > 0 {
		f.Message = fmt.Sprintf("Gave up after %d attempts. %s", attempts, f.Message)
	}
	return f
}
