package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/seal"
)

// Store keeps the records of jobs in Redis. It is safe for concurrent use.
type Store struct {
	rdb     redis.UniversalClient
	codec   *codec
	durable durable // what a new record must be; zero: relaxed
}

// NewStore returns a store on a client, with the keys by which it seals what jobs say and are told; nil: it does not.
// It does not dial.
func NewStore(rdb redis.UniversalClient, keys *seal.Ring) (*Store, error) {
	c, err := newCodec(keys)
	if err != nil {
		return nil, err
	}
	return &Store{rdb: rdb, codec: c}, nil
}

// create writes a new record. If the ID is taken it returns created == false and the hash of the
// submission that has it. With a *[UnconfirmedError] the record is there all the same.
func (s *Store) create(ctx context.Context, job *Job, hash string) (created bool, taken string, err error) {
	spec, err := json.Marshal(job.Spec)
	if err != nil {
		return false, "", fmt.Errorf("tasks: job %s: %w", job.ID, err)
	}
	args := []any{
		job.ID, micros(job.CreatedAt), micros(job.ExpiresAt), s.codec.packText(job.ID, fieldHash, hash), s.durable.touch(),
		"spec", spec, fieldBody, s.codec.pack(job.ID, fieldBody, job.Request), "queue", job.Queue(),
		"retention", job.Retention.Microseconds(),
	}
	if !job.RunAt.IsZero() {
		args = append(args, "run_at", micros(job.RunAt))
	}
	reply, err := s.durable.run(ctx, s.rdb, createScript, recordKeys(job.ID), args)
	if reply == nil {
		return false, "", fmt.Errorf("tasks: job %s: %w", job.ID, err)
	}
	if unconfirmed, ok := errors.AsType[*UnconfirmedError](err); ok {
		unconfirmed.ID = job.ID
	}
	taken, unreadable := s.codec.unpackText(job.ID, fieldHash, text(reply[1]))
	if unreadable != nil {
		return false, "", &UnreadableError{ID: job.ID, Field: fieldHash, cause: unreadable}
	}
	return reply[0] == int64(1), taken, err
}

// fields are what Get reads; the request's body is left out unless asked for, since a poll has no use
// for it.
var fields = []string{
	"state", "spec", "created", "updated", "started", "ended", "run_at", "due",
	"attempts", "retries", "snoozes", "crashes", "runs", "why",
	fieldError, "ledger", fieldResult, fieldBody,
}

// Detail chooses how much of a record is read.
type Detail int

// The details, each with what the one before it has.
const (
	Summary Detail = iota // no ledger, no bodies: for lists
	Full                  // with ledger and result
	WithRequest
)

func (d Detail) fields() []string {
	switch d {
	case Summary:
		return fields[:15]
	case Full:
		return fields[:17]
	default:
		return fields
	}
}

// Get returns a job, or [ErrNotFound].
func (s *Store) Get(ctx context.Context, id string, d Detail) (*Job, error) {
	if !ValidID(id) {
		return nil, ErrNotFound
	}
	values, err := s.rdb.HMGet(ctx, jobKey(id), d.fields()...).Result()
	if err != nil {
		return nil, fmt.Errorf("tasks: job %s: %w", id, err)
	}
	return s.decodeReply(id, d, values)
}

// decodeReply reads the fields of a detail. What cannot be read is an error, but for the reason of a failure in a
// summary: a list, a retry and a deletion can do without.
func (s *Store) decodeReply(id string, d Detail, values []any) (*Job, error) {
	names := d.fields()
	record := make(map[string]string, len(names))
	for i, v := range values {
		if t, ok := v.(string); ok {
			record[names[i]] = t
		}
	}
	job, err := s.decode(id, record)
	if err != nil {
		return nil, err
	}
	if !job.DeletesAt.IsZero() && time.Now().After(job.DeletesAt) {
		return nil, ErrNotFound // the sweep is on its way
	}
	if e := job.unreadable; e != nil && (d != Summary || e.Field != fieldError) {
		return nil, e
	}
	return job, nil
}

// decode reads a record as Redis returns it. What it cannot read it leaves out and notes in the job.
func (s *Store) decode(id string, record map[string]string) (*Job, error) {
	if record["state"] == "" {
		return nil, ErrNotFound
	}
	job := &Job{
		ID:        id,
		State:     State(record["state"]),
		CreatedAt: moment(record["created"]),
		UpdatedAt: moment(record["updated"]),
		StartedAt: moment(record["started"]),
		EndedAt:   moment(record["ended"]),
		RunAt:     moment(record["run_at"]),
		Attempts:  number(record["attempts"]),
		Retries:   number(record["retries"]),
		Snoozes:   number(record["snoozes"]),
		Crashes:   number(record["crashes"]),
		lost:      number(record["lost"]),
		Runs:      number(record["runs"]),
		WaitingOn: record["why"],
	}
	if job.State.Terminal() {
		job.DeletesAt = moment(record["due"])
	} else {
		job.ExpiresAt = moment(record["due"])
	}
	// Of a newer version's spec everything is shown that has the form it had.
	if err := json.Unmarshal([]byte(record["spec"]), &job.Spec); err != nil && job.Version <= specVersion {
		job.cannotRead("spec", err)
	}
	var err error
	if job.Ledger, err = decodeLedger(record["ledger"]); err != nil {
		job.cannotRead("ledger", err)
	}
	if job.Result, err = s.codec.unpack(id, fieldResult, []byte(record[fieldResult])); err != nil {
		job.cannotRead(fieldResult, err)
	}
	if job.Request, err = s.codec.unpack(id, fieldBody, []byte(record[fieldBody])); err != nil {
		job.cannotRead(fieldBody, err)
	}
	if job.Failure, err = s.codec.unpackFailure(id, record[fieldError]); err != nil {
		job.cannotRead(fieldError, err)
		job.Failure = unreadableFailure(job.unreadable)
	}
	return job, nil
}

// cannotRead notes that a field cannot be read; the first one counts.
func (j *Job) cannotRead(field string, cause error) {
	if j.unreadable == nil {
		j.unreadable = &UnreadableError{ID: j.ID, Field: field, cause: cause}
	}
}

// state returns where a job stands, or [ErrNotFound]. It is the cheap question a waiting client asks.
func (s *Store) state(ctx context.Context, id string) (State, error) {
	v, err := s.rdb.HGet(ctx, jobKey(id), "state").Result()
	if errors.Is(err, redis.Nil) {
		return "", ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("tasks: job %s: %w", id, err)
	}
	return State(v), nil
}

// claim gives an open job to a new run, known by a name, and returns it with its request. A job that
// another run has is returned as a *[heldError], unless that run is the one said to be lost; 0 is none. A
// job that has ended is a *[StateError].
func (s *Store) claim(ctx context.Context, id, by string, lost int) (*Job, error) {
	if !ValidID(id) {
		return nil, ErrNotFound
	}
	over := ""
	if lost > 0 {
		over = strconv.Itoa(lost)
	}
	reply, err := claimScript.Run(ctx, s.rdb, recordKeys(id), id, micros(time.Now()), by, over).Slice()
	if err != nil {
		return nil, fmt.Errorf("tasks: job %s: %w", id, err)
	}
	switch was := text(reply[0]); {
	case was == "none":
		return nil, ErrNotFound
	case was == string(Running):
		return nil, &heldError{id: id, run: number(text(reply[1])), by: text(reply[2])}
	case was != "":
		return nil, &StateError{ID: id, State: State(was), Want: "run"}
	}
	flat, ok := reply[1].([]any)
	if !ok {
		return nil, fmt.Errorf("tasks: job %s: claim: unexpected reply %T", id, reply[1])
	}
	record := make(map[string]string, len(flat)/2)
	for i := 0; i+1 < len(flat); i += 2 {
		record[text(flat[i])] = text(flat[i+1])
	}
	return s.decode(id, record)
}

// move is one change of a job's state; see moveScript.
type move struct {
	want string  // the verb, for errors
	from []State // where it is allowed
	to   State
	run  int       // the run that asks, which must have the job if one has; 0: a request from outside
	due  time.Time // zero: unchanged

	attempts, retries, snoozes int
	ledger                     []Attempt
	set                        []any    // field, value, ...
	del                        []string // fields
}

// end makes it the end of a job, whose record stays for a while.
func (m *move) end(now time.Time, retention time.Duration) {
	m.due = now.Add(retention)
	m.set = append(m.set, "ended", micros(now))
}

var open = []State{Queued, Running, Snoozed, Retrying}

// apply carries out a move and says which state it came from. A move that was carried out by an earlier
// try, whose reply was lost, succeeds again.
func (s *Store) apply(ctx context.Context, id string, m move) (before State, err error) {
	if !ValidID(id) {
		return "", ErrNotFound
	}
	ledger, err := encodeLedger(m.ledger)
	if err != nil {
		return "", fmt.Errorf("tasks: job %s: ledger: %w", id, err)
	}
	run, due := "", ""
	if m.run > 0 {
		run = strconv.Itoa(m.run)
	}
	if !m.due.IsZero() {
		due = strconv.FormatInt(micros(m.due), 10)
	}
	allowed := make([]string, len(m.from))
	for i, st := range m.from {
		allowed[i] = string(st)
	}
	args := append([]any{
		id, micros(time.Now()), run, "," + strings.Join(allowed, ",") + ",", string(m.to), due,
		ledger, m.attempts, m.retries, m.snoozes, strings.Join(m.del, ","),
	}, m.set...)
	reply, err := moveScript.Run(ctx, s.rdb, recordKeys(id), args...).Slice()
	if err != nil {
		return "", fmt.Errorf("tasks: job %s: %w", id, err)
	}
	before = State(text(reply[1]))
	switch {
	case reply[0] == int64(1):
		return before, nil
	case before == "":
		return "", ErrNotFound
	case m.run > 0 && before == m.to && text(reply[2]) == run:
		return Running, nil
	default:
		return "", &StateError{ID: id, State: before, Want: m.want}
	}
}

// remove deletes an ended job.
func (s *Store) remove(ctx context.Context, id string) error {
	if !ValidID(id) {
		return ErrNotFound
	}
	reply, err := deleteScript.Run(ctx, s.rdb, recordKeys(id), id).Slice()
	if err != nil {
		return fmt.Errorf("tasks: job %s: %w", id, err)
	}
	switch {
	case reply[0] == int64(1):
		return nil
	case text(reply[1]) == "":
		return ErrNotFound
	default:
		return &StateError{ID: id, State: State(text(reply[1])), Want: "delete"}
	}
}

// encodeLedger writes attempts as JSON lines, which a script can append to without reading them.
func encodeLedger(attempts []Attempt) (string, error) {
	if len(attempts) == 0 {
		return "", nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, a := range attempts {
		if err := enc.Encode(a); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func decodeLedger(lines string) ([]Attempt, error) {
	if lines == "" {
		return nil, nil
	}
	attempts := make([]Attempt, 0, strings.Count(lines, "\n"))
	for line := range strings.Lines(lines) {
		var a Attempt
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, err
		}
		attempts = append(attempts, a)
	}
	return attempts, nil
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func moment(micros string) time.Time {
	n, err := strconv.ParseInt(micros, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // absent means 0
	return n
}

func text(v any) string {
	s, _ := v.(string)
	return s
}
