package upstreamtest

import (
	"hash/fnv"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Record is one request as the upstream saw it. Header and Body are shared with
// the journal: read them, do not change them.
type Record struct {
	Time     time.Time     // arrival
	Duration time.Duration // until the answer was written; 0 while it is not
	Method   string
	Path     string
	Key      string // Idempotency-Key, empty without one
	Attempt  int    // which request of its job this is, from 1
	Header   http.Header
	Body     []byte
	Status   int  // as answered; 0 while unanswered and when a fault left no answer
	Fault    Kind // what was done to it; None for a normal answer
	Reused   bool // the connection had served an earlier request; needs Attach or Start
}

// Tally counts the requests of one job.
type Tally struct {
	Requests int // arrived
	Answers  int // answered in full with status 200; above 1 the job was paid for twice
}

// journal remembers the latest requests, and how often each job came.
type journal struct {
	keep    int
	records []*Record // a ring once it holds keep records
	next    int       // where the ring is overwritten

	// Jobs are kept in two generations, so that memory is bounded without a
	// list by age: a full new one replaces the old.
	young, old map[string]*Tally
}

// tallyKeys is the size of one generation of jobs.
const tallyKeys = 1 << 17

func newJournal(keep int) journal {
	return journal{keep: keep, young: make(map[string]*Tally)}
}

func (j *journal) add(r *Record) {
	switch {
	case j.keep <= 0:
	case len(j.records) < j.keep:
		j.records = append(j.records, r)
	default:
		j.records[j.next] = r
		j.next = (j.next + 1) % j.keep
	}
}

// list returns copies, oldest first.
func (j *journal) list() []Record {
	records := make([]Record, 0, len(j.records))
	for _, r := range slices.Concat(j.records[j.next:], j.records[:j.next]) {
		records = append(records, *r)
	}
	return records
}

// tally returns the counts of a job, made new for one unknown.
func (j *journal) tally(job string) *Tally {
	if t := j.young[job]; t != nil {
		return t
	}
	t := j.old[job]
	if t == nil {
		t = new(Tally)
	}
	if len(j.young) >= tallyKeys {
		j.young, j.old = make(map[string]*Tally), j.young
	}
	j.young[job] = t
	return t
}

// tallies returns copies of all counts.
func (j *journal) tallies() map[string]Tally {
	all := make(map[string]Tally, len(j.young)+len(j.old))
	for _, generation := range []map[string]*Tally{j.old, j.young} {
		for job, t := range generation {
			all[job] = *t
		}
	}
	return all
}

// jobOf names the job of a request: its Idempotency-Key or else its content.
func jobOf(r *http.Request, body []byte) string {
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		return key
	}
	h := fnv.New64a()
	_, _ = h.Write(body) // a hash never fails
	return r.Method + " " + r.URL.Path + " #" + strconv.FormatUint(h.Sum64(), 16)
}
