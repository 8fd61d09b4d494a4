package e2e_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// fault is a row of the fault suite: a part of a system under load breaks and is healed. Nothing that was accepted may
// be lost, and no answer bought twice, unless nobody could know of the first.
type fault struct {
	name     string // in the FIGURE line
	options  options
	before   time.Duration   // under the clients' load alone
	jobs     int             // then handed in at once; default long(1000, 7500)
	simulate string          // what each job meets at the upstream; see chat
	inFlight int             // calls at the upstream when it strikes; default any number
	strike   func(s *system) // breaks the part, lets time go by and heals it
	limit    time.Duration   // for all jobs to end after that; default 2m
	want     client.State    // of all jobs; default succeeded
	forgets  bool            // Redis may forget what it has acknowledged: that is counted, not refused
	also     func(r *row)    // looks for what else the row promises
}

// fewer are the jobs of a fault that need not find a long queue.
func fewer() int { return long(300, 5000) }

// row is what became of a fault.
type row struct {
	*system
	struck, healed time.Time
	jobs           []*client.Job // every accepted one as it ended, nil if it is gone
	lost           int           // accepted and not ended
	forgotten      []*client.Job // accepted, and there is no record of them
	clients        *clients
}

const (
	// submitters hand in a job each submitEvery while the fault lasts.
	submitters  = 8
	submitEvery = 400 * time.Millisecond
)

// quick is how soon a client must know that its job is not accepted. The race detector makes the programs slow, and its
// run is about races.
func quick() time.Duration {
	if raceDetector {
		return 15 * time.Second
	}
	return 4 * time.Second
}

// run makes a system, lets the fault strike it, and counts.
func (f fault) run(t *testing.T) {
	t.Helper()
	n := cmp.Or(f.jobs, long(1000, 7500))
	r := &row{system: start(t, f.options)}
	r.clients = r.startClients(submitters, f.simulate)
	jobs := r.submitAll(n, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), f.simulate) })
	until(t, 30*time.Second, "the upstream is called", func() bool { return r.upstream.Requests() > 0 })

	pass(t, f.before)

	r.struck = time.Now()
	f.strike(r.system)
	r.healed = time.Now()
	pass(t, time.Second)
	jobs = append(jobs, r.clients.stop()...)
	if f.forgets {
		jobs, r.forgotten = r.remembered(jobs)
	}
	r.jobs, r.lost = r.waitLong(jobs, cmp.Or(f.limit, 2*time.Minute))
	r.figure(f.name)
	r.check(f)
	if f.also != nil && !t.Failed() {
		f.also(r)
	}
}

// ended are the jobs that have.
func (r *row) ended() []*client.Job {
	return slices.DeleteFunc(slices.Clone(r.jobs), func(j *client.Job) bool { return j == nil || !j.State.Terminal() })
}

// orphans are the jobs whose worker died under them.
func (r *row) orphans() []*client.Job {
	return slices.DeleteFunc(r.ended(), func(j *client.Job) bool { return countAttempts(j, lost) == 0 })
}

// repeated counts the answers that were bought more than once, and the calls that were made more than once.
func (r *row) repeated() (answers, calls int) {
	for _, job := range r.ended() {
		tally := r.upstream.Tally(job.ID)
		answers += max(0, tally.Answers-1)
		calls += max(0, tally.Requests-1)
	}
	return answers, calls
}

// figure logs the row. From the healing to the first job that ended after it is its recovery, to the last one how long
// it took to drain. The last orphan is from the fault on.
func (r *row) figure(name string) {
	r.t.Helper()
	ended, orphans := r.ended(), r.orphans()
	answers, calls := r.repeated()
	states, open, unknowns := map[string]int{}, 0, 0
	recovery := time.Hour
	for _, job := range ended {
		states[string(job.State)]++
		unknowns += countAttempts(job, unknown)
		if job.CreatedAt.Before(r.struck) && job.FinishedAt.After(r.struck) {
			open++
		}
		if after := job.FinishedAt.Sub(r.healed); after > 0 {
			recovery = min(recovery, after)
		}
	}
	slowest, refused := r.clients.refusals()
	var lastOrphan time.Duration
	if len(orphans) > 0 {
		lastOrphan = lastEnd(orphans).Sub(r.struck)
	}
	r.t.Logf("FIGURE fault=%s accepted=%d ended=%d lost=%d repeated=%d unknown=%d recovery=%s open=%d states=%s "+
		"drained=%s calls_repeated=%d orphans=%d last_orphan=%s refused=%s slowest_refusal=%s",
		name, len(r.jobs)+len(r.forgotten), len(ended), r.lost+len(r.forgotten), answers, unknowns, recovery.Round(time.Millisecond), open, list(states),
		lastEnd(ended).Sub(r.healed).Round(time.Millisecond), calls, len(orphans), lastOrphan.Round(time.Millisecond), list(refused), slowest.Round(time.Millisecond))
}

// list writes counts as "a:1,b:2", "none" without any.
func list(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s:%d", name, counts[name]))
	}
	return cmp.Or(strings.Join(parts, ","), "none")
}

// check fails the test for what no fault may do.
func (r *row) check(f fault) {
	r.t.Helper()
	if r.lost > 0 {
		r.t.Errorf("%d of %d accepted jobs have not ended", r.lost, len(r.jobs))
	}
	wantState(r.t, r.ended(), cmp.Or(f.want, client.StateSucceeded))
	known := map[string]bool{}
	for _, job := range r.ended() {
		known[job.ID] = true
		if again := r.upstream.Tally(job.ID).Answers - 1; again > countAttempts(job, unknown) && !f.forgets {
			r.t.Errorf("job %s was answered %d times more, although its ledger knows all outcomes but %d:\n%s",
				job.ID, again, countAttempts(job, unknown), show(job))
		}
	}
	for id := range r.upstream.Tallies() {
		if !known[id] && r.lost+len(r.forgotten) == 0 {
			r.t.Errorf("the upstream was called for job %s, of which nobody was told", id)
		}
	}
	if slowest, _ := r.clients.refusals(); slowest > quick() {
		r.t.Errorf("a client waited %s to learn that its job was not accepted, want at most %s", slowest, quick())
	}
}

// clients hand in jobs while a system breaks. What is not accepted they hand in again, with the key it had, until it
// is.
type clients struct {
	t       *testing.T
	apis    []*client.Client // that try once and do not wait
	stopped chan struct{}
	done    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	accepted []*client.Job
	refused  map[string]int // by error code; "connection" without an answer
	slowest  time.Duration  // refusal
}

// startClients begins to hand in jobs, from each submitter one each submitEvery, at each API in turn. It ends with the test at the latest.
func (s *system) startClients(submitters int, simulate string) *clients {
	s.t.Helper()
	c := &clients{t: s.t, stopped: make(chan struct{}), refused: map[string]int{}}
	for _, url := range s.urls {
		api, err := client.New(client.Config{BaseURL: url, HTTP: s.http, Patience: -1})
		if err != nil {
			s.t.Fatal(err)
		}
		c.apis = append(c.apis, api)
	}
	for n := range submitters {
		c.done.Go(func() {
			for i := 0; !c.over(); i++ {
				r := chat(fmt.Sprintf("job %d of client %d", i, n), simulate)
				r.IdempotencyKey = fmt.Sprintf("client %d, job %d", n, i)
				c.submit(r, n+i)
				pass(c.t, submitEvery)
			}
		})
	}
	s.t.Cleanup(c.done.Wait)
	return c
}

// over reports whether no more jobs are wanted.
func (c *clients) over() bool {
	select {
	case <-c.stopped:
		return true
	case <-c.t.Context().Done():
		return true
	default:
		return false
	}
}

// submit hands in a job until it is accepted, at another API each time.
func (c *clients) submit(r client.SubmitRequest, turn int) {
	for c.t.Context().Err() == nil {
		began := time.Now()
		job, err := c.apis[turn%len(c.apis)].Submit(c.t.Context(), r)
		if c.t.Context().Err() != nil {
			return // the test has failed
		}
		c.note(job, err, time.Since(began))
		if err == nil {
			return
		}
		turn++
		pass(c.t, submitEvery)
	}
}

// note keeps what an attempt to hand in a job came to.
func (c *clients) note(job *client.Job, err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.accepted = append(c.accepted, job)
		return
	}
	c.slowest = max(c.slowest, took)
	refusal, answered := errors.AsType[*client.APIError](err)
	if !answered {
		c.refused["connection"]++ // refused or broken: there was no API
		return
	}
	c.refused[fmt.Sprintf("%d_%s", refusal.Status, refusal.Code)]++
	later := refusal.Status == http.StatusServiceUnavailable || refusal.Status == http.StatusInsufficientStorage
	if !later || refusal.Code == "" || refusal.Type == "" || refusal.RetryAfter == 0 {
		c.t.Errorf("a job was refused with %+v, want 503 or 507 with a code and Retry-After", refusal)
	}
}

// stop ends the clients once each has its last job accepted, and returns all that were.
func (c *clients) stop() []*client.Job {
	close(c.stopped)
	c.done.Wait()
	return c.accepted
}

// refusals are the slowest, and how many there were of each kind.
func (c *clients) refusals() (slowest time.Duration, kinds map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slowest, maps.Clone(c.refused)
}
