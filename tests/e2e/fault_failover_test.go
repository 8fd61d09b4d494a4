package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
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
	set := startSentinel(t, plainNode(t))
	f := pairFault("sentinel_failover", func(s *system) {
		s.replaceMaster(func() *redisserver.Server { return set.Master(s.t) })
	})
	f.jobs, f.options.redisURL = fewer(), set.URL()
	f.forgets, f.also = true, (*row).wantShortGap
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
	f.jobs, f.options.redisURL = fewer(), cluster.URL()
	f.forgets, f.also = true, (*row).wantShortGap
	f.run(t)
}

// startSentinel runs redis-servers and sentinels, and leaves -short out as start does.
func startSentinel(t *testing.T, node func(*redisserver.Config)) *redistest.Sentinel {
	t.Helper()
	needProcesses(t)
	return redistest.StartSentinel(t, node)
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
	pass(s.t, 3*time.Second) // go on without it
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

// strictConfig accepts a job once it is on the disks of the master and of a replica.
const strictConfig = plainConfig + `
jobs: {durability: strict, durability_replicas: 1}
`

// What Redis acknowledges before a replica has it is lost with its master. This counts how much that is when the master
// is cut off from its replicas for a moment before it dies. No worker runs; clients hand in jobs as fast as they can.
func TestFaultFailoverForgets(t *testing.T) {
	const cutOff = 500 * time.Millisecond
	tests := []struct {
		name   string
		node   func(t *testing.T) func(*redisserver.Config)
		config string
		safe   bool // nothing is accepted once the master knows that it is cut off
	}{
		{name: "default", node: plainNode},
		{name: "min_replicas_1", node: cautiousNode, safe: true},
		{name: "strict_1_replica", node: confirmingNode, config: strictConfig, safe: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			set := startSentinel(t, tt.node(t))
			s := start(t, options{apis: 2, redisURL: set.URL(), config: tt.config})
			rush := s.startRush()
			until(t, 30*time.Second, "jobs are accepted", func() bool { return rush.accepted() > 500 })
			began := time.Now()
			reconnect := s.isolate(set)
			cut := time.Now()
			pass(t, cutOff)
			s.replaceMaster(func() *redisserver.Server { return set.Master(t) }, reconnect)
			jobs := rush.stop()
			_, forgotten := s.remembered(jobs)
			t.Logf("FIGURE fault=failover_forgets_%s accepted=%d lost=%d gap=%s",
				tt.name, len(jobs), len(forgotten), longestGap(jobs).Round(time.Millisecond))
			for _, job := range forgotten {
				if job.CreatedAt.Before(began.Add(-time.Second)) || tt.safe && job.CreatedAt.After(cut) {
					t.Errorf("job %s is gone, which was accepted at %s; the master was cut off at %s", job.ID, job.CreatedAt, cut)
				}
			}
		})
	}
}

func plainNode(*testing.T) func(*redisserver.Config) { return func(*redisserver.Config) {} }

// cautiousNode is a server that refuses to write without a replica.
func cautiousNode(*testing.T) func(*redisserver.Config) {
	return func(c *redisserver.Config) { c.Args = append(c.Args, "--min-replicas-to-write", "1") }
}

// confirmingNode is a server that can tell when a write is on disk, here and at a replica: one with WAITAOF. As in
// internal/tasks, the build must have one, and a machine of one's own may go without.
func confirmingNode(t *testing.T) func(*redisserver.Config) {
	t.Helper()
	for _, name := range []string{"valkey-server", "redis-server"} {
		version, err := exec.Command(name, "--version").Output()
		var major, minor int
		if _, at, found := strings.Cut(string(version), " v="); err == nil && found {
			_, err = fmt.Sscanf(at, "%d.%d", &major, &minor)
		}
		if err == nil && (major > 7 || major == 7 && minor >= 2) {
			return func(c *redisserver.Config) { c.Binary, c.AppendFsync = name, "always" }
		}
	}
	const missing = "no server here knows WAITAOF: install valkey-server, or Redis 7.2 or later (scripts/install-redis.sh)"
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return nil
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
