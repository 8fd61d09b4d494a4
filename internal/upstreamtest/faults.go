package upstreamtest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is one way to fail: one of the constants below or [Status].
type Kind string

// The kinds beside plain status codes. "Stream" is an answer to "stream": true.
const (
	None      Kind = ""           // a normal answer
	Timeout   Kind = "timeout"    // accept, then say nothing until the client goes; "hang" is the same
	Reset     Kind = "reset"      // TCP reset instead of an answer
	EOF       Kind = "eof"        // connection closed instead of an answer
	Cut       Kind = "cut"        // connection broken in the middle of the body or stream
	CutStream Kind = "cut_stream" // stream ends cleanly but early, without [DONE]; a plain body as Cut
	Garbage   Kind = "garbage"    // 200 with invalid JSON
	HTML      Kind = "html"       // 502 with a proxy's HTML page
	SlowBody  Kind = "slow_body"  // 200 at once, then the body in drips over SlowFor
	Quota     Kind = "quota"      // 429 insufficient_quota, which no wait can heal
)

// Status is the kind that answers with code, 400 to 599, and OpenAI's error
// envelope. 429 carries Retry-After and x-ratelimit-* headers.
func Status(code int) Kind { return Kind(strconv.Itoa(code)) }

// status returns the code of a Status kind.
func (k Kind) status() (code int, ok bool) {
	code, err := strconv.Atoi(string(k))
	ok = err == nil && code >= http.StatusBadRequest && code <= 599 && len(k) == 3
	return code, ok
}

// parseKind accepts the name of a kind as ParseFaults reads it.
func parseKind(name string) (Kind, bool) {
	if name == "hang" {
		return Timeout, true
	}
	k := Kind(name)
	_, ok := k.status()
	return k, ok || slices.Contains([]Kind{Timeout, Reset, EOF, Cut, CutStream, Garbage, HTML, SlowBody, Quota}, k)
}

// Faults says how often and how an upstream fails. The zero value never does.
// Its text form is that of [ParseFaults].
type Faults struct {
	First      []Count       // the first requests of each job fail like this, in order
	Shares     []Share       // of all later requests, these shares fail; they sum to at most 1
	Latency    time.Duration // waited before every answer and fault
	Jitter     time.Duration // up to this much more, drawn evenly
	RetryAfter time.Duration // in the headers of 429 and 503; default 1s for 429, none for 503
	SlowFor    time.Duration // time a SlowBody takes, in ten drips; default 5s
}

// Count is a fault of the first N requests of a job.
type Count struct {
	Kind Kind
	N    int
}

// Share is a fault of a part of all requests, 0 to 1.
type Share struct {
	Kind  Kind
	Share float64
}

const (
	shareSlack     = 1e-9 // ten times 0.1 is not 1 in floating point
	defaultSlowFor = 5 * time.Second
	validItems     = "KIND=SHARE or KIND*COUNT, where KIND is a status 400 to 599, timeout (or hang), reset, eof, " +
		"cut, cut_stream, garbage, html, slow_body or quota, and latency, jitter, retry_after or slow_for=DURATION"
)

// ParseFaults reads a list such as
//
//	503*2,reset*1,503=0.3,timeout=0.1,latency=200ms,jitter=50ms,retry_after=2s
//
// KIND*COUNT fails the first requests of a job, in the order written: here two
// 503, then one reset. Requests with the same Idempotency-Key are one job;
// without the header, equal requests are. KIND=SHARE then fails that share of
// requests by one draw over all kinds, so that shares add up and never exceed 1.
// latency, jitter, retry_after and slow_for set the fields of [Faults] of that
// name as Go durations. An empty list is the zero Faults.
//
// The error names every item it refuses and lists the valid ones.
func ParseFaults(s string) (Faults, error) {
	var f Faults
	if strings.TrimSpace(s) == "" {
		return f, nil
	}
	seen := make(map[string]bool)
	var errs []error
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		name, err := f.add(item)
		if err == nil && name != "" && seen[name] {
			err = errors.New("is given twice")
		}
		seen[name] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("upstreamtest: faults: %q %w", item, err))
		}
	}
	if sum := f.sum(); sum > 1+shareSlack {
		errs = append(errs, fmt.Errorf("upstreamtest: faults: shares sum to %.4g, more than 1", sum))
	}
	if len(errs) > 0 {
		return Faults{}, errors.Join(append(errs, errors.New("upstreamtest: faults: valid are "+validItems))...)
	}
	return f, nil
}

// MustParseFaults is [ParseFaults] for lists that are constants. It panics on an
// error.
func MustParseFaults(s string) Faults {
	f, err := ParseFaults(s)
	if err != nil {
		panic(err)
	}
	return f
}

// add reads one item into f. The name is what may stand in a list only once.
func (f *Faults) add(item string) (name string, err error) {
	if name, n, ok := strings.Cut(item, "*"); ok {
		return "", f.addCount(name, n)
	}
	name, value, ok := strings.Cut(item, "=")
	if !ok {
		return "", errors.New("is neither KIND=SHARE nor KIND*COUNT nor SETTING=DURATION")
	}
	if d := f.duration(name); d != nil {
		*d, err = parseDuration(value)
		return name, err
	}
	k, ok := parseKind(name)
	if !ok {
		return "", errors.New("is not a fault or setting")
	}
	share, err := strconv.ParseFloat(value, 64)
	if err != nil || !(share >= 0 && share <= 1) { // the negation catches NaN
		return "", fmt.Errorf("has share %q, not a number from 0 to 1", value)
	}
	f.Shares = append(f.Shares, Share{Kind: k, Share: share})
	return string(k), nil
}

func (f *Faults) addCount(name, n string) error {
	k, ok := parseKind(name)
	if !ok {
		return errors.New("is not a fault")
	}
	count, err := strconv.ParseUint(n, 10, 31)
	if err != nil || count == 0 {
		return fmt.Errorf("has count %q, not a whole number above 0", n)
	}
	f.First = append(f.First, Count{Kind: k, N: int(count)})
	return nil
}

// duration returns the field behind a setting's name, or nil.
func (f *Faults) duration(name string) *time.Duration {
	switch name {
	case "latency":
		return &f.Latency
	case "jitter":
		return &f.Jitter
	case "retry_after":
		return &f.RetryAfter
	case "slow_for":
		return &f.SlowFor
	default:
		return nil
	}
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("has duration %q, not one like 200ms or 2s", s)
	}
	return d, nil
}

func (f Faults) sum() float64 {
	var sum float64
	for _, s := range f.Shares {
		sum += s.Share
	}
	return sum
}

// String is the list that [ParseFaults] reads back as f.
func (f Faults) String() string {
	var items []string
	for _, c := range f.First {
		items = append(items, string(c.Kind)+"*"+strconv.Itoa(c.N))
	}
	for _, s := range f.Shares {
		items = append(items, string(s.Kind)+"="+strconv.FormatFloat(s.Share, 'g', -1, 64))
	}
	for _, name := range []string{"latency", "jitter", "retry_after", "slow_for"} {
		if d := *f.duration(name); d != 0 {
			items = append(items, name+"="+d.String())
		}
	}
	return strings.Join(items, ",")
}

// plan is what happens to one request.
type plan struct {
	fault      Kind
	wait       time.Duration
	retryAfter time.Duration
	slowFor    time.Duration
	raw        *Step // a scripted answer in full, or nil
}

// draw decides about a job's attempt, counted from 1. It takes the same two
// numbers from rnd whatever f holds, so a new setting moves no other draw.
func (f Faults) draw(attempt int, rnd *rand.Rand) plan {
	chance, extra := rnd.Float64(), rnd.Float64()
	return plan{
		fault:      f.kind(attempt, chance),
		wait:       f.Latency + time.Duration(extra*float64(f.Jitter)),
		retryAfter: f.RetryAfter,
		slowFor:    cmp.Or(f.SlowFor, defaultSlowFor),
	}
}

func (f Faults) kind(attempt int, chance float64) Kind {
	for _, c := range f.First {
		if attempt <= c.N {
			return c.Kind
		}
		attempt -= c.N
	}
	for _, s := range f.Shares {
		if chance < s.Share {
			return s.Kind
		}
		chance -= s.Share
	}
	return None
}
