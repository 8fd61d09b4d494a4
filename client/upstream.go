package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// BreakerState is what a breaker does with the calls of the whole fleet. A newer server may know more
// states than these.
type BreakerState string

// The states of a breaker.
const (
	BreakerClosed   BreakerState = "closed"    // calls pass
	BreakerOpen     BreakerState = "open"      // calls are refused, and jobs wait without losing an attempt
	BreakerHalfOpen BreakerState = "half-open" // a few probes find out whether the upstream is back
)

// BreakerMode is an operator's say over a breaker.
type BreakerMode string

// The modes. Each stays until the next Override, also over a restart of every worker.
const (
	ModeAuto  BreakerMode = "auto"  // the numbers decide; coming from another mode, they begin anew
	ModeOpen  BreakerMode = "open"  // every call is refused
	ModeClose BreakerMode = "close" // every call passes, whatever the numbers
)

// Upstream is an upstream as the fleet sees it at the moment of the answer.
type Upstream struct {
	Name    string  `json:"name"`
	Object  string  `json:"object"` // always "upstream"
	Breaker Breaker `json:"breaker"`
	Jobs    Backlog `json:"jobs"`

	raw json.RawMessage
}

// UnmarshalJSON accepts an upstream, and nothing that has no name.
func (u *Upstream) UnmarshalJSON(data []byte) error {
	type plain Upstream // without this method
	if err := json.Unmarshal(data, (*plain)(u)); err != nil {
		return err
	}
	if u.Name == "" {
		return errors.New("upstream without a name")
	}
	u.raw = bytes.Clone(data)
	return nil
}

// RawJSON is the upstream as the server sent it, with the fields this package does not know. It is nil
// for an upstream that was not decoded.
func (u *Upstream) RawJSON() json.RawMessage { return u.raw }

// Breaker is the fleet's verdict on an upstream.
type Breaker struct {
	State  BreakerState `json:"state"`
	Mode   BreakerMode  `json:"mode"`
	Reason string       `json:"reason,omitempty"` // why State began, such as failure_ratio; empty if it never changed
	Since  time.Time    `json:"since,omitzero"`   // when State began

	// OpenUntil is when probes begin. It is zero unless the numbers have opened the breaker, and in the
	// past while no worker runs.
	OpenUntil time.Time `json:"open_until,omitzero"`

	Calls        int64   `json:"calls"` // of the last seconds while closed, else those that decided
	Failures     int64   `json:"failures"`
	FailureRatio float64 `json:"failure_ratio"` // Failures of Calls, from 0 to 1; 0 without calls
	Slow         int64   `json:"slow"`          // of Calls, those longer than the configured limit
	Trips        int64   `json:"trips"`         // openings without a rest between them; each doubled the open time
	Probes       int64   `json:"probes"`        // in flight
}

// Backlog is what waits for an upstream, over all priorities.
type Backlog struct {
	Ready   int  `json:"ready"`   // could run now
	Taken   int  `json:"taken"`   // workers have them: in a call, or held until the breaker lets one pass
	Waiting int  `json:"waiting"` // snoozed, retrying or delayed
	Paused  bool `json:"paused"`  // an operator has paused a queue, in the dashboard

	Oldest time.Duration `json:"-"` // how long the oldest of Ready has been ready; whole milliseconds
}

// plainBacklog is Backlog without its methods.
type plainBacklog Backlog

// backlogJSON is a Backlog on the wire, where times are in seconds.
type backlogJSON struct {
	*plainBacklog
	OldestSeconds float64 `json:"oldest_seconds"`
}

// MarshalJSON writes the duration in seconds.
func (b Backlog) MarshalJSON() ([]byte, error) {
	p := plainBacklog(b)
	return json.Marshal(backlogJSON{&p, b.Oldest.Seconds()})
}

// UnmarshalJSON reads the duration in seconds.
func (b *Backlog) UnmarshalJSON(data []byte) error {
	wire := backlogJSON{plainBacklog: (*plainBacklog)(b)}
	if err := json.Unmarshal(data, &wire); err != nil {
		return err
	}
	// Thirty years are beyond any backlog; without the bound the product could overflow.
	seconds := min(max(wire.OldestSeconds, 0), 1e9)
	b.Oldest = time.Duration(math.Round(seconds*1000)) * time.Millisecond
	return nil
}

// upstreamList is a list of upstreams on the wire.
type upstreamList struct {
	Object string     `json:"object"`
	Data   []Upstream `json:"data"`
}

// UnmarshalJSON accepts a list, and no other object.
func (l *upstreamList) UnmarshalJSON(data []byte) error {
	type plain upstreamList // without this method
	if err := json.Unmarshal(data, (*plain)(l)); err != nil {
		return err
	}
	if l.Object != "list" {
		return fmt.Errorf("object %q instead of a list", l.Object)
	}
	return nil
}
