// Package tasks is the job: its record in Redis, its states, the queue that carries it to a worker, the
// handler that makes the call, and the decision what becomes of it afterwards. It is the only package
// that speaks asynq.
//
// The idea: the record is the truth and asynq is the transport. A job's hash in Redis holds its state,
// request, result and attempts, and every change of it is one script that checks where the job stands.
// asynq's task carries the job's ID and nothing else. What asynq forgets, repeats or archives therefore
// loses no job: a task for a finished job is a no-op, a job without a task gets a new one.
package tasks

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
)

// State is where a job stands.
type State string

// The states of a job. Queued, Running, Snoozed and Retrying are open, the others are terminal.
const (
	Queued    State = "queued"    // waits for a worker, or for its run_at
	Running   State = "running"   // a worker has it
	Snoozed   State = "snoozed"   // waits for a breaker, a limit or a pool; has spent no attempt for it
	Retrying  State = "retrying"  // waits after a failed attempt
	Succeeded State = "succeeded" // has a result
	Failed    State = "failed"    // has an error; can be retried
	Canceled  State = "canceled"  // by request
	Expired   State = "expired"   // was not served within expires_in
)

// States returns every state in the order of a job's life.
func States() []State {
	return []State{Queued, Running, Snoozed, Retrying, Succeeded, Failed, Canceled, Expired}
}

// Valid reports whether s is one of [States].
func (s State) Valid() bool { return slices.Contains(States(), s) }

// Terminal reports whether a job in this state has ended.
func (s State) Terminal() bool {
	switch s {
	case Succeeded, Failed, Canceled, Expired:
		return true
	default:
		return false
	}
}

// Priority chooses among the queues of an upstream. Workers take from a higher one more often, but never
// only from it.
type Priority string

// The priorities.
const (
	High   Priority = "high"
	Normal Priority = "default"
	Low    Priority = "low"
)

// Priorities returns every priority, the most urgent first.
func Priorities() []Priority { return []Priority{High, Normal, Low} }

// Valid reports whether p is one of [Priorities].
func (p Priority) Valid() bool { return slices.Contains(Priorities(), p) }

// weight is how often a queue of this priority is asked first, against the sum of all.
func (p Priority) weight() int {
	switch p {
	case High:
		return 6
	case Low:
		return 1
	default:
		return 3
	}
}

// QueueName is the asynq queue of an upstream's jobs of one priority.
func QueueName(upstream string, p Priority) string { return upstream + ":" + string(p) }

// Spec is what does not change over a job's life.
type Spec struct {
	Version     int               `json:"v"`
	Kind        openai.Kind       `json:"kind"`
	Upstream    string            `json:"upstream"`
	Priority    Priority          `json:"priority"`
	Model       string            `json:"model,omitempty"`
	MaxAttempts int               `json:"max_attempts"`
	ExpiresIn   time.Duration     `json:"expires_in"` // time to serve it, from when it may run
	Retention   time.Duration     `json:"retention"`  // how long the record stays after the end
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// specVersion is raised when an older worker could no longer read a Spec.
const specVersion = 1

// Job is a job as its record showed it at one moment.
type Job struct {
	ID string
	Spec
	State     State
	CreatedAt time.Time
	UpdatedAt time.Time
	StartedAt time.Time // of the first run; zero before
	EndedAt   time.Time // zero while open
	RunAt     time.Time // when a waiting job is due; zero for none
	ExpiresAt time.Time // when an open job is given up
	DeletesAt time.Time // when an ended job's record goes; zero while open
	Attempts  int       // that reached the upstream
	Retries   int       // runs that ended in Retrying
	Snoozes   int       // runs that ended in Snoozed
	Crashes   int       // runs that began and never ended: their worker was lost
	lost      int       // of these, in a row
	Runs      int       // times a worker took the job; also the fencing epoch of the run
	WaitingOn string    // why a snoozed or retrying job waits: "breaker_open", "http_503", ...
	Request   []byte    // the body for the upstream; only where asked for
	Result    []byte    // the upstream's answer
	Failure   *Failure  // why the job failed or expired
	Ledger    []Attempt

	unreadable *UnreadableError // a part of the record that cannot be read here
}

// Queue is the asynq queue the job belongs to.
func (j *Job) Queue() string { return QueueName(j.Upstream, j.Priority) }

// Failure is why a job ended without a result. Its texts are redacted: they are kept in Redis.
type Failure struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
	Class   string  `json:"class,omitempty"`  // httpx's class of the last attempt
	Status  int     `json:"status,omitempty"` // the upstream's HTTP status, if it answered
}

// Attempt is one HTTP exchange with the upstream, or the trace of a run that was lost.
type Attempt struct {
	N          int         `json:"n"`   // 1 is the job's first attempt
	Run        int         `json:"run"` // which run made it
	StartedAt  time.Time   `json:"started_at,omitzero"`
	DurationMS int64       `json:"duration_ms"`
	Status     int         `json:"status,omitempty"`
	Class      httpx.Class `json:"class"`
	Reason     string      `json:"reason,omitempty"`
	Sent       bool        `json:"sent"`            // reached the upstream; only these count
	Unknown    bool        `json:"outcome_unknown"` // may have taken effect without an answer
	WaitMS     int64       `json:"wait_ms,omitempty"`
	WaitReason string      `json:"wait_reason,omitempty"`
}

// attemptsOf turns the attempts of one call into ledger entries that go on counting where the job's
// ledger stopped, and says how many of them reached the upstream.
func attemptsOf(calls []httpx.Attempt, job *Job) (entries []Attempt, sent int) {
	before := 0
	for _, a := range job.Ledger {
		if a.Sent {
			before++
		}
	}
	for _, a := range calls {
		if a.Sent {
			sent++
		}
		entries = append(entries, Attempt{
			N:          before + sent,
			Run:        job.Runs,
			StartedAt:  a.Start.UTC().Truncate(time.Millisecond),
			DurationMS: a.Duration.Milliseconds(),
			Status:     a.Status,
			Class:      a.Class,
			Reason:     a.Reason,
			Sent:       a.Sent,
			Unknown:    a.OutcomeUnknown,
			WaitMS:     a.Wait.Milliseconds(),
			WaitReason: a.WaitReason,
		})
	}
	return entries, sent
}

// task is the payload of an asynq task: a reference, never the prompt. asynq sends payloads to Redis
// again every 5 s while they run, and its dashboard shows them.
type task struct {
	Version int    `json:"v"`
	Job     string `json:"job"`
}

func (t task) encode() []byte {
	b, _ := json.Marshal(t) // two plain fields cannot fail
	return b
}
