package e2e_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// dev starts "ferry dev" in a directory and returns it with a client.
func dev(t *testing.T, dir string, args ...string) (*process, *client.Client) {
	t.Helper()
	args = append([]string{"dev", "--addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"}, args...)
	p := launch(t, "ferry", dir, nil, args...)
	addr := p.await(t, devAddress)
	if strings.HasSuffix(addr, ":0") {
		t.Fatalf("the banner shows %s, not the port that was chosen", addr)
	}
	c, err := client.New(client.Config{BaseURL: "http://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

// answer hands in a job and waits for it.
func answer(t *testing.T, c *client.Client) *client.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	job, err := c.Submit(ctx, chat("Hello", ""))
	if err != nil {
		t.Fatal(err)
	}
	if job, err = c.Wait(ctx, job.ID); err != nil {
		t.Fatal(err)
	}
	wantState(t, []*client.Job{job}, client.StateSucceeded)
	return job
}

func TestDevKeepsJobsAcrossRestarts(t *testing.T) {
	needProcesses(t)
	dir := t.TempDir()
	first, c := dev(t, dir)
	for _, want := range []string{"/dashboard", "/metrics", "redis-server at ", "simulated at ", "Jobs survive a restart.", "curl "} {
		if !strings.Contains(first.output(), want) {
			t.Errorf("the banner lacks %q:\n%s", want, first.output())
		}
	}
	job := answer(t, c)
	first.stop(t, os.Interrupt)

	began := time.Now()
	second, c := dev(t, dir)
	figure(t, "dev_start_to_banner", time.Since(began))
	answer(t, c)
	figure(t, "dev_start_to_first_answer", time.Since(began))
	kept, err := c.Get(t.Context(), job.ID)
	if err != nil || kept.State != client.StateSucceeded || string(kept.Result) != string(job.Result) {
		t.Errorf("the job before the restart: %v, %s; want its answer", err, show(kept))
	}
	second.stop(t, os.Interrupt)
}

func TestDevInMemorySaysThatNothingIsKept(t *testing.T) {
	t.Parallel() // no figures
	needProcesses(t)
	p, c := dev(t, t.TempDir(), "--memory")
	p.await(t, regexp.MustCompile(`(WARNING: NOT DURABLE)`))
	answer(t, c)
	p.stop(t, os.Interrupt)
}

func TestDevKeepsItsPromiseAfterACrash(t *testing.T) {
	t.Parallel() // no figures
	needProcesses(t)
	dir := t.TempDir()
	first, c := dev(t, dir)
	job := answer(t, c)
	first.signal(t, syscall.SIGKILL)
	<-first.ended

	second, c := dev(t, dir)
	if kept, err := c.Get(t.Context(), job.ID); err != nil || kept.State != client.StateSucceeded {
		t.Errorf("the job before the crash: %v, %s; want its answer", err, show(kept))
	}
	second.stop(t, os.Interrupt)
}
