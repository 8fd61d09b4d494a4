package tasks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ferry-queue/ferry/internal/openai"
)

// letter is an answer on its way to its job's record, with all that the record needs to take it. It can
// lie on disk for a while, and be delivered by another process than the one that made the call.
type letter struct {
	Version   int           `json:"v"`
	Job       string        `json:"job"`
	Kind      openai.Kind   `json:"kind"`
	Upstream  string        `json:"upstream"`
	CreatedAt time.Time     `json:"created_at"` // the job
	Retention time.Duration `json:"retention"`
	Snoozes   int           `json:"snoozes"`
	Run       int           `json:"run"`  // in whose name it is delivered
	Sent      int           `json:"sent"` // attempts that it adds to the job's
	Ledger    []Attempt     `json:"ledger"`

	result []byte // packed, as it will stand in the record
}

// letterVersion is raised when an older worker could no longer deliver an answer that lies on disk.
const letterVersion = 1

// errNewerLetter says that only a newer version of Ferry can deliver an answer.
var errNewerLetter = errors.New("tasks: answer of a newer version of Ferry")

// move ends the job with the answer. A job that nobody has takes it too: the run may have been given up
// for lost and its job put back, but the next run has not begun, and the answer saves its call.
func (l *letter) move(now time.Time) move {
	m := move{
		want: "end", from: open, to: Succeeded, run: l.Run, attempts: l.Sent, ledger: l.Ledger,
		set: []any{"lost", 0, fieldResult, l.result}, del: []string{"run_at", "why"},
	}
	m.end(now, l.Retention) // counted from here: an outage may last longer than an answer is kept
	return m
}

// job is as much of the job as hooks and logs are shown.
func (l *letter) job() *Job {
	return &Job{
		ID: l.Job, Spec: Spec{Kind: l.Kind, Upstream: l.Upstream, Retention: l.Retention},
		CreatedAt: l.CreatedAt, Snoozes: l.Snoozes, Runs: l.Run,
	}
}

// encode is a line of JSON and, behind it, the packed result.
func (l *letter) encode() ([]byte, error) {
	head, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("tasks: job %s: answer: %w", l.Job, err)
	}
	file := make([]byte, 0, len(head)+1+len(l.result))
	file = append(append(file, head...), '\n')
	return append(file, l.result...), nil
}

func decodeLetter(file []byte) (*letter, error) {
	head, result, ok := bytes.Cut(file, []byte("\n"))
	if !ok {
		return nil, errors.New("tasks: answer: no line of JSON in front")
	}
	var l letter
	if err := json.Unmarshal(head, &l); err != nil {
		return nil, fmt.Errorf("tasks: answer: %w", err)
	}
	switch {
	case l.Version > letterVersion:
		return nil, errNewerLetter
	case !ValidID(l.Job) || l.Run < 1 || len(result) == 0:
		return nil, errors.New("tasks: answer: job, run or result is missing")
	}
	l.result = result
	return &l, nil
}
