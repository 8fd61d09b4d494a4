package tasks

import (
	"errors"
	"fmt"

	"github.com/ferry-queue/ferry/internal/seal"
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

// UnreadableError says that a part of a job's record cannot be read here, though perhaps by another process: one that
// has the key, or a newer version.
type UnreadableError struct {
	ID    string // of the job
	Field string // of the record: "body", "result", "error", ...
	cause error
}

// Error names the job, the field and the cause.
func (e *UnreadableError) Error() string {
	return fmt.Sprintf("tasks: job %s: %s: %v", e.ID, e.Field, e.cause)
}

// Unwrap is the cause.
func (e *UnreadableError) Unwrap() error { return e.cause }

// Key is the ID of the encryption key that is missing; empty if that is not the cause.
func (e *UnreadableError) Key() string {
	if missing, ok := errors.AsType[*seal.KeyError](e.cause); ok {
		return missing.ID
	}
	return ""
}

// Reason is the cause in a word: "encryption_key_missing", "needs_newer_version" or "record_damaged".
func (e *UnreadableError) Reason() string {
	switch {
	case e.Key() != "":
		return "encryption_key_missing"
	case errors.Is(e.cause, errNewerForm):
		return "needs_newer_version"
	default:
		return "record_damaged"
	}
}

// UnconfirmedError says that a job is in Redis and may run, but that it could not be confirmed to be as
// durable as was asked for.
type UnconfirmedError struct {
	ID     string
	Reason string // in plain words, fit to be shown
	cause  error
}

// Error names the job and what is missing.
func (e *UnconfirmedError) Error() string {
	text := fmt.Sprintf("tasks: job %s: durability unconfirmed: %s", e.ID, e.Reason)
	if e.cause != nil {
		text += ": " + e.cause.Error()
	}
	return text
}

// Unwrap is what went wrong, if more is known than the reason.
func (e *UnconfirmedError) Unwrap() error { return e.cause }
