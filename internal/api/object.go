package api

import (
	"encoding/json"
	"time"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// jobObject is a job as clients see it.
type jobObject struct {
	ID          string            `json:"id"`
	Object      string            `json:"object"` // "job"
	Kind        openai.Kind       `json:"kind"`
	State       tasks.State       `json:"state"`
	Upstream    string            `json:"upstream"`
	Priority    tasks.Priority    `json:"priority"`
	Model       string            `json:"model"`
	CreatedAt   time.Time         `json:"created_at"`
	UpdatedAt   time.Time         `json:"updated_at"`
	StartedAt   time.Time         `json:"started_at,omitzero"`
	FinishedAt  time.Time         `json:"finished_at,omitzero"`
	RunAt       time.Time         `json:"run_at,omitzero"`     // when a waiting job is due
	ExpiresAt   time.Time         `json:"expires_at,omitzero"` // when an open job is given up
	DeletesAt   time.Time         `json:"deletes_at,omitzero"` // when an ended job is forgotten
	Attempts    int               `json:"attempts"`
	MaxAttempts int               `json:"max_attempts"`
	Snoozes     int               `json:"snoozes"`
	Crashes     int               `json:"crashes"`
	WaitingFor  string            `json:"waiting_for,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Result      json.RawMessage   `json:"result,omitempty"`
	Error       *tasks.Failure    `json:"error,omitempty"`
	Ledger      []tasks.Attempt   `json:"ledger,omitempty"`
}

type listObject struct {
	Object  string      `json:"object"` // "list"
	Data    []jobObject `json:"data"`
	HasMore bool        `json:"has_more"`
	Next    string      `json:"next,omitempty"`
}

func objectOf(j *tasks.Job) jobObject {
	return jobObject{
		ID: j.ID, Object: "job", Kind: j.Kind, State: j.State, Upstream: j.Upstream, Priority: j.Priority, Model: j.Model,
		CreatedAt: milli(j.CreatedAt), UpdatedAt: milli(j.UpdatedAt), StartedAt: milli(j.StartedAt), FinishedAt: milli(j.EndedAt),
		RunAt: milli(j.RunAt), ExpiresAt: milli(j.ExpiresAt), DeletesAt: milli(j.DeletesAt),
		Attempts: j.Attempts, MaxAttempts: j.MaxAttempts, Snoozes: j.Snoozes, Crashes: j.Crashes,
		WaitingFor: j.WaitingOn, Metadata: j.Metadata, Result: j.Result, Error: j.Failure, Ledger: j.Ledger,
	}
}

func milli(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
