package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// failoverGap is how long a failover may keep clients from handing in jobs: a dead master is seen as such after 2 s, and
// a busy machine takes its time to elect another.
const failoverGap = 15 * time.Second

// A dead master is replaced under load. No program of ours is restarted or told.
func TestFaultSentinelFailover(t *testing.T) {
	t.Parallel() // it mostly waits
	set := startSentinel(t)
	f := pairFault("sentinel_failover", func(s *system) {
		s.replaceMaster(func() *redisserver.Server { return set.Master(s.t) })
	})
	f.options.redisURL, f.forgets, f.also = set.URL(), true, (*row).wantShortGap
	f.run(t)
}

// The master dies that has the queue, one of three, and so does a replica of another.
func TestFaultClusterFailover(t *testing.T) {
	t.Parallel() // it mostly waits
	needProcesses(t)
	cluster := redistest.StartCluster(t)
	master := func() *redisserver.Server { return cluster.Master(t, "asynq:{"+queueName+"}:pending") }
	f := pairFault("cluster_failover", func(s *system) {
		nodes := cluster.Nodes()
		masters := len(nodes) / 2
		replica := nodes[masters+(slices.Index(nodes, master())+1)%masters]
		killServer(s.t, replica)
		s.replaceMaster(master)
		restartServer(s.t, replica)
	})
	f.options.redisURL, f.forgets, f.also = cluster.URL(), true, (*row).wantShortGap
	f.run(t)
}

// startSentinel runs redis-servers with more arguments, and sentinels.
func startSentinel(t *testing.T, args ...string) *redistest.Sentinel {
	t.Helper()
	needProcesses(t)
	return redistest.StartSentinel(t, func(c *redisserver.Config) { c.Args = append(c.Args, args...) })
}

// replaceMaster kills the master and then does what a test wants done at that moment. It waits until another has taken
// its place, and brings the first one back to serve as a replica.
func (s *system) replaceMaster(master func() *redisserver.Server, then ...func()) {
	s.t.Helper()
	first := master()
	killServer(s.t, first)
	for _, do := range then {
		do()
	}
	until(s.t, time.Minute, "another master", func() bool { return master() != first })
	pass(s.t, 5*time.Second)
	restartServer(s.t, first)
	pass(s.t, 2*time.Second)
}

func killServer(t *testing.T, s *redisserver.Server) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
}

func restartServer(t *testing.T, s *redisserver.Server) {
	t.Helper()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// wantShortGap fails the test if nothing was accepted for too long.
func (r *row) wantShortGap() {
	r.t.Helper()
	gap := longestGap(r.jobs)
	figure(r.t, "longest_gap_of_acceptance", gap)
	if gap > failoverGap {
		r.t.Errorf("nothing was accepted for %s, want at most %s", gap, failoverGap)
	}
}

// longestGap is the longest time between the acceptance of one of jobs and the next.
func longestGap(jobs []*client.Job) (gap time.Duration) {
	at := make([]time.Time, len(jobs))
	for i, job := range jobs {
		at[i] = job.CreatedAt
	}
	slices.SortFunc(at, time.Time.Compare)
	for i := 1; i < len(at); i++ {
		gap = max(gap, at[i].Sub(at[i-1]))
	}
	return gap
}

// What Redis acknowledges before a replica has it is lost with its master. This counts how much that is when the master
// is cut off from its replicas for a moment before it dies. No worker runs; clients hand in jobs as fast as they can.
func TestFaultFailoverForgets(t *testing.T) {
	t.Parallel() // it mostly waits
	const cutOff = 500 * time.Millisecond
	tests := []struct {
		name    string
		args    []string // of each redis-server
		forgets bool
	}{
		{name: "default", forgets: true},
		{name: "min_replicas_1", args: []string{"--min-replicas-to-write", "1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := startSentinel(t, tt.args...)
			s := start(t, options{apis: 2, redisURL: set.URL()})
			rush := s.startRush()
			until(t, 30*time.Second, "jobs are accepted", func() bool { return rush.accepted() > 1000 })
			cut := time.Now()
			reconnect := s.isolate(set)
			pass(t, cutOff)
			s.replaceMaster(func() *redisserver.Server { return set.Master(t) }, reconnect)
			jobs := rush.stop()
			_, forgotten := s.remembered(jobs)
			t.Logf("FIGURE fault=failover_forgets_%s accepted=%d lost=%d gap=%s",
				tt.name, len(jobs), len(forgotten), longestGap(jobs).Round(time.Millisecond))
			if len(forgotten) > 0 && !tt.forgets {
				t.Errorf("%d jobs were accepted and are gone, want none", len(forgotten))
			}
			for _, job := range forgotten {
				if age := cut.Sub(job.CreatedAt); age > 100*time.Millisecond {
					t.Errorf("job %s was accepted %s before the master was cut off, and is gone", job.ID, age)
				}
			}
		})
	}
}

// isolate cuts the master off from its replicas, which stand still until reconnect.
func (s *system) isolate(set *redistest.Sentinel) (reconnect func()) {
	s.t.Helper()
	master := set.Master(s.t)
	replicas := slices.DeleteFunc(slices.Clone(set.Nodes()), func(n *redisserver.Server) bool { return n == master })
	for _, r := range replicas {
		if err := r.Pause(); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := store(s.t, master.Addr()).ClientKillByFilter(s.t.Context(), "TYPE", "replica").Err(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		for _, r := range replicas {
			if err := r.Resume(); err != nil {
				s.t.Error(err)
			}
		}
	}
}

// rush is clients that hand in jobs as fast as they are accepted.
type rush struct {
	stopped chan struct{}
	done    sync.WaitGroup

	mu   sync.Mutex // guards jobs
	jobs []*client.Job
}

func (s *system) startRush() *rush {
	r := &rush{stopped: make(chan struct{})}
	for n := range submitters {
		r.done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-r.stopped:
					return
				case <-s.t.Context().Done():
					return
				default:
				}
				job, err := s.client().Submit(s.t.Context(), chat(fmt.Sprintf("job %d of client %d", i, n), ""))
				if err == nil {
					r.mu.Lock()
					r.jobs = append(r.jobs, job)
					r.mu.Unlock()
				}
			}
		})
	}
	s.t.Cleanup(r.done.Wait)
	return r
}

// accepted is how many jobs have been so far.
func (r *rush) accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.jobs)
}

// stop ends the rush and returns what was accepted.
func (r *rush) stop() []*client.Job {
	close(r.stopped)
	r.done.Wait()
	return r.jobs
}

// remembered parts jobs into those of which there is a record and the others.
func (s *system) remembered(jobs []*client.Job) (kept, gone []*client.Job) {
	s.t.Helper()
	missing := make([]bool, len(jobs))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, job := range jobs {
		group.Go(func() error {
			_, err := s.client().Get(s.t.Context(), job.ID)
			refusal, answered := errors.AsType[*client.APIError](err)
			if missing[i] = answered && refusal.Status == http.StatusNotFound; missing[i] {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
	for i, job := range jobs {
		if missing[i] {
			gone = append(gone, job)
		} else {
			kept = append(kept, job)
		}
	}
	return kept, gone
}
