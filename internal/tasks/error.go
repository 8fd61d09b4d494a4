package tasks

import (
	"errors"
	"fmt"
)

// ErrNotFound says that there is no such job: it never was, or its retention is over.
var ErrNotFound = errors.New("tasks: no such job")

// StateError says that a job's state forbids what was asked.
type StateError struct {
	ID    string
	State State  // where the job stands
	Want  string // what was asked: "cancel", "retry", "delete", "end", ...
}

// Error names the job, its state and what was asked.
func (e *StateError) Error() string {
	return fmt.Sprintf("tasks: job %s: cannot %s a job that is %s", e.ID, e.Want, e.State)
}

// KeyReuseError says that an idempotency key came again with another request.
type KeyReuseError struct {
	ID string // the job that has the key
}

// Error names the job that has the key.
func (e *KeyReuseError) Error() string {
	return fmt.Sprintf("tasks: the idempotency key belongs to job %s, which was submitted with another body", e.ID)
}

// heldError says that another run has the job.
type heldError struct {
	id  string
	run int
	by  string // see [Fleet]
}

func (e *heldError) Error() string {
	return fmt.Sprintf("tasks: job %s: run %d has it", e.id, e.run)
}
