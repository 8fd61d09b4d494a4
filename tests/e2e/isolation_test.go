package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// twoHouses is a ferry.yaml with two upstreams of which the second, $OTHER, will hang.
const twoHouses = `
worker: {concurrency: 32, drain: 1s}
upstreams:
  - {name: sim, base_url: $UPSTREAM}
  - {name: other, base_url: $OTHER, policies: {chat: {first_byte: 3m}}}
`

// An upstream that hangs holds its own places in every worker, with a full queue behind it, and nobody else's.
func TestIsolationOfAnUpstreamThatHangs(t *testing.T) {
	other := upstreamtest.Start(t, upstreamtest.Config{Faults: upstreamtest.MustParseFaults("timeout=1"), KeepJournal: 1})
	s := start(t, options{
		workers: fleetSize, config: fill(twoHouses, "$OTHER", other.BaseURL()),
		upstream: upstreamtest.Config{Faults: upstreamtest.MustParseFaults("latency=50ms"), KeepJournal: 1},
	})
	const perSecond = 50
	measure := func(over time.Duration) []time.Duration {
		l := s.startLoad(perSecond)
		pass(t, over)
		ended := s.waitAll(l.stop(), 30*time.Second)
		wantState(t, ended, client.StateSucceeded)
		return ages(ended)
	}
	measure(2 * time.Second) // warms connections and caches up, so that the two that count are alike
	alone := measure(long(4*time.Second, 30*time.Second))

	backlog := long(500, 5000)
	s.submitAll(backlog, func(i int) client.SubmitRequest {
		r := chat(fmt.Sprintf("hangs %d", i), "")
		r.Upstream = "other"
		return r
	})
	until(t, 30*time.Second, "the other upstream has all the calls it can get", func() bool { return other.InFlight() == fleetSize*32 })
	pass(t, time.Second)
	beside := measure(long(8*time.Second, time.Minute))
	if n := other.InFlight(); n != fleetSize*32 {
		t.Errorf("%d calls hang at the other upstream, want all its %d places", n, fleetSize*32)
	}
	figure(t, "isolation_jobs", len(beside))
	figure(t, "isolation_backlog_of_other", backlog)
	for _, p := range []float64{50, 99} {
		figure(t, fmt.Sprintf("isolation_p%.0f_alone", p), percentile(alone, p))
		figure(t, fmt.Sprintf("isolation_p%.0f_beside", p), percentile(beside, p))
	}
	// A tenth of some 70 ms is less than what a busy machine of two cores adds by itself now and then.
	if a, b := percentile(alone, 99), percentile(beside, 99); b > a+max(a/10, 50*time.Millisecond) {
		t.Errorf("the 99th percentile is %s beside an upstream that hangs, want %s and little more", b, a)
	}
}

// ages are how long jobs took from acceptance to end, sorted.
func ages(jobs []*client.Job) (d []time.Duration) {
	for _, job := range jobs {
		d = append(d, job.FinishedAt.Sub(job.CreatedAt))
	}
	slices.Sort(d)
	return d
}
