// Package e2e_test runs the whole system as it is deployed, as processes on real sockets: redis-server, the
// api and worker binaries, and a simulated upstream. Then it breaks a part and looks whether every job that
// was accepted still ends as promised.
//
// Each figure worth keeping is logged on a line of its own, as in "FIGURE name=pickup_p50 value=14ms". Under
// -v they can be collected; docs/verification.md is made from a run with FERRY_E2E_LONG=1, in which outages
// last longer and more jobs take part.
package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

const (
	startLimit = 30 * time.Second // for a process to say that it listens; the machine may be busy
	stopLimit  = 30 * time.Second // for a process to end after SIGTERM
	parallel   = 64               // clients of submitAll and waitAll
)

// upstreamName is the simulated upstream in a ferry.yaml, and queueName where its jobs wait.
const (
	upstreamName = "sim"
	queueName    = upstreamName + ":default"
)

// plainConfig is a ferry.yaml without settings. $UPSTREAM stands for the simulated upstream's base URL.
const plainConfig = `
upstreams:
  - {name: sim, base_url: $UPSTREAM}
`

// options is what a test decides about its system. A further upstream is one that the test starts and whose
// address it fills in; what a single job meets is said by chat.
type options struct {
	apis     int                       // default 1
	workers  int                       // may be 0
	config   string                    // ferry.yaml; default plainConfig
	upstream upstreamtest.Config       // KeepJournal defaults to plenty
	redis    func(*redisserver.Config) // changes how redis-server is run: fsync, binary, arguments
	redisURL string                    // of a Redis that the test has started; then there is no other
	env      []string                  // of the programs, besides what they need
	wire     bool                      // put a wire that can be cut between the programs and redis-server
}

// system is a running Ferry with all it needs.
type system struct {
	t        *testing.T
	redis    *redisserver.Server // nil with a redisURL
	wire     *wire               // nil without options.wire
	upstream *upstreamtest.Server
	apis     []*process
	workers  []*process
	urls     []string // of the APIs: their names, which http finds
	http     *http.Client

	dir     string // holds ferry.yaml, and is the working directory of all
	env     []string
	addrs   *sync.Map // name of an API: where it listens now
	clients []*client.Client
	turn    *atomic.Uint64 // whose turn among clients
}

// start brings a system up, and takes it down when the test ends.
func start(t *testing.T, o options) *system {
	t.Helper()
	needProcesses(t)
	if o.upstream.KeepJournal == 0 {
		o.upstream.KeepJournal = 1 << 16
	}
	s := &system{t: t, dir: t.TempDir(), addrs: new(sync.Map), turn: new(atomic.Uint64)}
	s.env = append([]string{"FERRY_REDIS_URL=" + s.startRedis(o)}, o.env...)
	s.upstream = upstreamtest.Start(t, o.upstream)
	transport := &http.Transport{MaxIdleConnsPerHost: 4 * parallel, DialContext: s.dial}
	t.Cleanup(transport.CloseIdleConnections)
	s.http = &http.Client{Transport: transport}

	text := strings.ReplaceAll(cmp.Or(o.config, plainConfig), "$UPSTREAM", s.upstream.BaseURL())
	if err := os.WriteFile(filepath.Join(s.dir, "ferry.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range max(1, o.apis) {
		s.startAPI()
	}
	for range o.workers {
		s.startWorker()
	}
	for _, w := range s.workers {
		w.await(t, workerAddress)
	}
	for _, p := range s.apis {
		s.addrs.Store(p.name, p.await(t, apiAddress))
		s.connect("http://" + p.name)
	}
	return s
}

// startRedis starts what the options ask for and returns the address for the programs.
func (s *system) startRedis(o options) string {
	s.t.Helper()
	if o.redisURL != "" {
		return o.redisURL
	}
	if o.redis == nil {
		o.redis = func(*redisserver.Config) {}
	}
	s.redis = redistest.Start(s.t, o.redis)
	if !o.wire {
		return s.redis.URL()
	}
	s.wire = startWire(s.t, s.redis.Addr())
	return s.wire.url()
}

// dial connects to an API by its name. One that was restarted listens elsewhere, and its clients need not know.
func (s *system) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if name, _, err := net.SplitHostPort(addr); err == nil {
		if at, ok := s.addrs.Load(name); ok {
			addr = at.(string)
		}
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// in is the system in a subtest, which must not end its parent.
func (s *system) in(t *testing.T) *system {
	sub := *s
	sub.t = t
	return &sub
}

// needProcesses leaves the test out of -short: it starts processes.
func needProcesses(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: starts processes")
	}
}

func (s *system) startAPI() {
	s.apis = append(s.apis, launch(s.t, fmt.Sprintf("api%d", len(s.apis)), s.dir, s.env, "--addr", "127.0.0.1:0"))
}

func (s *system) startWorker() *process {
	w := launch(s.t, fmt.Sprintf("worker%d", len(s.workers)), s.dir, s.env, "--admin-addr", "127.0.0.1:0")
	s.workers = append(s.workers, w)
	return w
}

// restart runs a program that has ended once more, with the same directory and arguments, under the same name, and
// returns when it listens.
func (s *system) restart(ended *process) *process {
	s.t.Helper()
	<-ended.ended
	p := launch(s.t, ended.name, s.dir, s.env, ended.cmd.Args[1:]...)
	if i := slices.Index(s.workers, ended); i >= 0 {
		s.workers[i] = p
		p.await(s.t, workerAddress)
		return p
	}
	s.apis[slices.Index(s.apis, ended)] = p
	s.addrs.Store(p.name, p.await(s.t, apiAddress))
	return p
}

func (s *system) connect(url string) {
	s.t.Helper()
	c, err := client.New(client.Config{BaseURL: url, HTTP: s.http, Patience: time.Minute})
	if err != nil {
		s.t.Fatal(err)
	}
	s.urls = append(s.urls, url)
	s.clients = append(s.clients, c)
}

// client returns a client of each API in turn.
func (s *system) client() *client.Client {
	return s.clients[s.turn.Add(1)%uint64(len(s.clients))]
}

// chat is a small chat job. The text makes it tell apart; simulate is how the upstream treats it, "" for as
// it treats all.
func chat(text, simulate string) client.SubmitRequest {
	request := map[string]any{
		"model":    "gpt-5-mini",
		"messages": []map[string]string{{"role": "user", "content": text}},
	}
	if simulate != "" {
		request["simulate"] = simulate
	}
	return client.SubmitRequest{Kind: client.KindChat, Request: request}
}

// submit hands in one job.
func (s *system) submit(r client.SubmitRequest) *client.Job {
	s.t.Helper()
	job, err := s.client().Submit(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return job
}

// submitAll hands in n jobs from many clients and returns them in order.
func (s *system) submitAll(n int, request func(i int) client.SubmitRequest) []*client.Job {
	s.t.Helper()
	jobs := make([]*client.Job, n)
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range n {
		group.Go(func() (err error) {
			jobs[i], err = s.client().Submit(s.t.Context(), request(i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
	return jobs
}

// waitAll returns jobs as they ended. Those that have not within limit are a failure.
func (s *system) waitAll(jobs []*client.Job, limit time.Duration) []*client.Job {
	s.t.Helper()
	ended, open := s.waitLong(jobs, limit)
	if open > 0 {
		s.t.Fatalf("%d of %d jobs have not ended within %s", open, len(jobs), limit)
	}
	return ended
}

// waitLong returns jobs as they were when they had ended or limit had passed, nil for one that is gone, and how many
// have not ended. It shows some of these.
func (s *system) waitLong(jobs []*client.Job, limit time.Duration) (seen []*client.Job, open int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	seen = make([]*client.Job, len(jobs))
	var missing atomic.Int64
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, job := range jobs {
		group.Go(func() error {
			var err error
			if seen[i], err = s.client().Wait(ctx, job.ID); err != nil {
				if missing.Add(1) <= 3 {
					s.t.Errorf("job %s has not ended: %v\n%s", job.ID, err, show(seen[i]))
				}
			}
			return nil
		})
	}
	_ = group.Wait() // never an error
	return seen, int(missing.Load())
}

// wait returns a job as it ended.
func (s *system) wait(job *client.Job, limit time.Duration) *client.Job {
	s.t.Helper()
	return s.waitAll([]*client.Job{job}, limit)[0]
}

// get returns a job as it stands.
func (s *system) get(id string) *client.Job {
	s.t.Helper()
	job, err := s.client().Get(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return job
}

// awaitState returns a job once it has a state.
func (s *system) awaitState(id string, want client.State) *client.Job {
	s.t.Helper()
	var job *client.Job
	until(s.t, 30*time.Second, "job "+id+" is "+string(want), func() bool {
		job = s.get(id)
		return job.State == want
	})
	return job
}

// load is a steady stream of new jobs.
type load struct {
	stopped chan struct{}
	done    chan struct{}

	mu   sync.Mutex // guards jobs
	jobs []*client.Job
}

// startLoad begins to hand in perSecond jobs a second, whether the answers come or not. It ends with the test
// at the latest.
func (s *system) startLoad(perSecond int) *load {
	l := &load{stopped: make(chan struct{}), done: make(chan struct{})}
	s.t.Cleanup(func() { <-l.done })
	go func() {
		defer close(l.done)
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		var submitting sync.WaitGroup
		defer submitting.Wait()
		for i := 0; ; i++ {
			select {
			case <-l.stopped:
				return
			case <-s.t.Context().Done():
				return
			case <-tick.C:
				submitting.Go(func() { l.submit(s, chat(fmt.Sprintf("job %d", i), "")) })
			}
		}
	}()
	return l
}

func (l *load) submit(s *system, r client.SubmitRequest) {
	job, err := s.client().Submit(s.t.Context(), r)
	if s.t.Context().Err() != nil {
		return // the test has failed before it stopped the load
	}
	if err != nil {
		s.t.Errorf("submit: %v", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.jobs = append(l.jobs, job)
}

// stop ends the stream and returns every job that was accepted.
func (l *load) stop() []*client.Job {
	close(l.stopped)
	<-l.done
	return l.jobs
}

// do makes a plain HTTP exchange with the first API.
func (s *system) do(method, path string, header http.Header, body io.Reader) (int, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.urls[0]+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// until looks again and again until cond holds. After limit the test fails.
func until(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		<-tick.C
	}
}

// pass lets time go by: the length of an outage or of a load is a part of the scenario.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// long is d, or much in a run that is made for the figures.
func long[T any](d, much T) T {
	if os.Getenv("FERRY_E2E_LONG") != "" {
		return much
	}
	return d
}

// figure logs a measured value.
func figure(t *testing.T, name string, value any) {
	t.Helper()
	if d, ok := value.(time.Duration); ok {
		value = d.Round(100 * time.Microsecond)
	}
	t.Logf("FIGURE name=%s value=%v", name, value)
}

// percentile is the smallest of sorted that p percent of them do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

// wantState fails the test for jobs in another state.
func wantState(t *testing.T, jobs []*client.Job, want client.State) {
	t.Helper()
	wrong := slices.DeleteFunc(slices.Clone(jobs), func(j *client.Job) bool { return j.State == want })
	for _, job := range wrong[:min(3, len(wrong))] {
		t.Errorf("job is %s, want %s:\n%s", job.State, want, show(job))
	}
	if len(wrong) > 0 {
		t.Fatalf("%d of %d jobs are not %s", len(wrong), len(jobs), want)
	}
}

// countAttempts is how many attempts in a job's ledger satisfy is.
func countAttempts(job *client.Job, is func(client.Attempt) bool) int {
	n := 0
	for _, a := range job.Ledger {
		if is(a) {
			n++
		}
	}
	return n
}

func sent(a client.Attempt) bool    { return a.Sent }
func unknown(a client.Attempt) bool { return a.OutcomeUnknown }
func lost(a client.Attempt) bool    { return a.Reason == "worker_lost" }

// show is a job as the server sent it.
func show(job *client.Job) string {
	if job == nil {
		return "(no job)"
	}
	b, err := json.MarshalIndent(job.RawJSON(), "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}
