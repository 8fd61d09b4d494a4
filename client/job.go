package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kind is the endpoint of the upstream that a job is for.
type Kind string

// The kinds of jobs.
const (
	KindChat       Kind = "chat"       // chat completion: request has model and messages
	KindGenerate   Kind = "generate"   // text completion: request has model and prompt
	KindEmbeddings Kind = "embeddings" // embeddings: request has model and input
)

// Priority is the place of a job among the waiting ones.
type Priority string

// The priorities. Without one, a job has PriorityDefault.
const (
	PriorityHigh    Priority = "high"
	PriorityDefault Priority = "default"
	PriorityLow     Priority = "low"
)

// State is where a job is in its life. A newer server may know more states than these.
type State string

// The states of a job. The last four are terminal.
const (
	StateQueued    State = "queued"    // waits for a worker or for its time
	StateRunning   State = "running"   // a worker has it
	StateSnoozed   State = "snoozed"   // waits for a breaker, a limit or a Retry-After; costs no attempt
	StateRetrying  State = "retrying"  // waits between an attempt that failed and the next
	StateSucceeded State = "succeeded" // Result holds the answer
	StateFailed    State = "failed"    // Error holds the reason
	StateCanceled  State = "canceled"  // ended by Cancel
	StateExpired   State = "expired"   // could not be served in time
)

// Terminal reports whether a job in this state has ended. Only Retry takes it further.
func (s State) Terminal() bool {
	switch s {
	case StateSucceeded, StateFailed, StateCanceled, StateExpired:
		return true
	default:
		return false
	}
}

// Job is a request over its whole life. A time that is zero has not come or is not known.
type Job struct {
	ID       string   `json:"id"`
	Object   string   `json:"object"` // always "job"
	Kind     Kind     `json:"kind"`
	State    State    `json:"state"`
	Upstream string   `json:"upstream"`
	Priority Priority `json:"priority"`
	Model    string   `json:"model,omitempty"`

	CreatedAt  time.Time `json:"created_at,omitzero"`
	UpdatedAt  time.Time `json:"updated_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	RunAt      time.Time `json:"run_at,omitzero"`     // not before
	ExpiresAt  time.Time `json:"expires_at,omitzero"` // not after
	DeletesAt  time.Time `json:"deletes_at,omitzero"` // end of retention

	Attempts    int    `json:"attempts"`              // that reached the upstream
	MaxAttempts int    `json:"max_attempts"`          // before the job fails
	Snoozes     int    `json:"snoozes"`               // times it was put back without spending an attempt
	Crashes     int    `json:"crashes"`               // workers that died with it
	WaitingFor  string `json:"waiting_for,omitempty"` // why it is snoozed, such as breaker_open

	Metadata map[string]string `json:"metadata,omitempty"` // as submitted
	Result   json.RawMessage   `json:"result,omitempty"`   // the upstream's answer, unchanged
	Error    *JobError         `json:"error,omitempty"`
	Ledger   []Attempt         `json:"ledger,omitempty"` // every attempt, first to last

	raw json.RawMessage
}

// UnmarshalJSON accepts a job, and nothing that has no ID.
func (j *Job) UnmarshalJSON(data []byte) error {
	type plain Job // without this method
	if err := json.Unmarshal(data, (*plain)(j)); err != nil {
		return err
	}
	if j.ID == "" {
		return errors.New("job without an id")
	}
	j.raw = bytes.Clone(data)
	return nil
}

// RawJSON is the job as the server sent it, with the fields this package does not know. It is nil
// for a job that was not decoded.
func (j *Job) RawJSON() json.RawMessage { return j.raw }

// JobError is why a job ended without a result.
type JobError struct {
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   string `json:"param"`
	Code    string `json:"code"`
	Class   string `json:"class"`            // permanent, transient, throttled, refused or canceled
	Status  int    `json:"status,omitempty"` // the upstream's last HTTP status; 0 without one
}

// Attempt is one HTTP exchange with the upstream, or what stands for one that was not sent or was lost.
type Attempt struct {
	N         int       `json:"n"`   // 1 for the first
	Run       int       `json:"run"` // the turn at a worker it belongs to
	StartedAt time.Time `json:"started_at,omitzero"`
	Status    int       `json:"status,omitempty"` // HTTP status; 0 without an answer
	Class     string    `json:"class,omitempty"`  // ok, or the class of the failure
	Reason    string    `json:"reason,omitempty"` // such as http_500
	Sent      bool      `json:"sent"`             // reached the upstream, so it counts

	// OutcomeUnknown: the upstream may have done the work although no answer came.
	OutcomeUnknown bool   `json:"outcome_unknown"`
	WaitReason     string `json:"wait_reason,omitempty"` // such as backoff or retry_after

	Duration time.Duration `json:"-"` // of the exchange; whole milliseconds
	Wait     time.Duration `json:"-"` // before the next attempt; whole milliseconds
}

// plainAttempt is Attempt without its methods.
type plainAttempt Attempt

// attemptJSON is an Attempt on the wire, where times are in milliseconds.
type attemptJSON struct {
	*plainAttempt
	DurationMS int64 `json:"duration_ms"`
	WaitMS     int64 `json:"wait_ms,omitempty"`
}

// MarshalJSON writes the durations as milliseconds.
func (a Attempt) MarshalJSON() ([]byte, error) {
	p := plainAttempt(a)
	return json.Marshal(attemptJSON{&p, a.Duration.Milliseconds(), a.Wait.Milliseconds()})
}

// UnmarshalJSON reads the durations as milliseconds.
func (a *Attempt) UnmarshalJSON(data []byte) error {
	wire := attemptJSON{plainAttempt: (*plainAttempt)(a)}
	if err := json.Unmarshal(data, &wire); err != nil {
		return err
	}
	a.Duration = time.Duration(wire.DurationMS) * time.Millisecond
	a.Wait = time.Duration(wire.WaitMS) * time.Millisecond
	return nil
}

// SubmitRequest is a new job. Only Kind and Request are required; the server has a default for the rest.
type SubmitRequest struct {
	Kind     Kind
	Request  any // body for the upstream, as encoding/json writes it; json.RawMessage goes as it is
	Upstream string
	Priority Priority

	Delay time.Duration // before the first run; not together with RunAt
	RunAt time.Time     // of the first run

	ExpiresIn   time.Duration     // from acceptance to giving up; server's default 24h
	MaxAttempts int               // that may reach the upstream; server's default 25
	Retention   time.Duration     // of result or error, from the end on; server's default 24h
	Metadata    map[string]string // comes back with the job

	// IdempotencyKey makes a repetition of this request find the same job, also from another
	// process. Default: a random key, which covers the repetitions of one Submit.
	IdempotencyKey string
}

// encode writes the request as the body of POST /v1/jobs.
func (r SubmitRequest) encode() ([]byte, error) {
	if r.Request == nil {
		return nil, errors.New("client: submit without a request for the upstream")
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // a prompt's < and > are nobody's markup
	err := enc.Encode(struct {
		Kind        Kind              `json:"kind,omitempty"`
		Request     any               `json:"request"`
		Upstream    string            `json:"upstream,omitempty"`
		Priority    Priority          `json:"priority,omitempty"`
		Delay       string            `json:"delay,omitempty"`
		RunAt       time.Time         `json:"run_at,omitzero"`
		ExpiresIn   string            `json:"expires_in,omitempty"`
		MaxAttempts int               `json:"max_attempts,omitempty"`
		Retention   string            `json:"retention,omitempty"`
		Metadata    map[string]string `json:"metadata,omitempty"`
	}{
		r.Kind, r.Request, r.Upstream, r.Priority, duration(r.Delay), r.RunAt,
		duration(r.ExpiresIn), r.MaxAttempts, duration(r.Retention), r.Metadata,
	})
	if err != nil {
		return nil, fmt.Errorf("client: request for the upstream: %w", err)
	}
	return body.Bytes(), nil
}

// duration is d as a Go string, and empty for none.
func duration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

// ListOptions selects jobs; a zero field selects all.
type ListOptions struct {
	State    State
	Kind     Kind
	Upstream string
	After    string // cursor: Page.Next of the page before
	Limit    int    // jobs in a page; the server has a default and a maximum
}

// Page is a part of a list of jobs.
type Page struct {
	Data    []*Job `json:"data"`
	HasMore bool   `json:"has_more"`
	Next    string `json:"next,omitempty"` // cursor of the next page

	raw json.RawMessage
}

// UnmarshalJSON accepts a list of jobs, and no other object.
func (p *Page) UnmarshalJSON(data []byte) error {
	type plain Page // without this method
	var list struct {
		Object string `json:"object"`
		*plain
	}
	list.plain = (*plain)(p)
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	if list.Object != "list" {
		return fmt.Errorf("object %q instead of a list", list.Object)
	}
	if slices.Contains(p.Data, nil) {
		return errors.New("null instead of a job in a list")
	}
	p.raw = bytes.Clone(data)
	return nil
}

// RawJSON is the page as the server sent it. It is nil for a page that was not decoded.
func (p *Page) RawJSON() json.RawMessage { return p.raw }
