// Package workerconfig turns what an operator set into the Config of a worker.
package workerconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/tasks"
	"github.com/ferry-queue/ferry/internal/worker"
)

// Of returns the worker's part of a configuration that [config.Load] has checked. The error joins what is
// wrong with the part only a worker has.
func Of(c *config.Config) (worker.Config, error) {
	backoff := tasks.DefaultBackoff()
	if c.Jobs.Backoff != (httpx.Backoff{}) {
		backoff = c.Jobs.Backoff.WithDefaults()
	}
	cfg := worker.Config{
		Jobs: c.TasksConfig(), Backoff: backoff, Poll: c.Worker.Poll, Drain: c.Worker.Drain, Version: config.Version(),
		Spool: worker.Spool{Dir: c.Worker.SpoolDir, Limit: c.Worker.SpoolLimit, Optional: !c.SpoolDirSet()},
	}
	var errs []error
	if err := (httpx.Policy{Backoff: backoff}).WithDefaults().Validate(); err != nil { // its only other fields are defaults
		for line := range strings.SplitSeq(err.Error(), "\n") {
			errs = append(errs, errors.New("jobs."+line))
		}
	}
	for i, u := range c.Upstreams {
		up := worker.Upstream{Config: c.OpenAI(u), Breaker: c.Breaker(u)}
		if err := up.Validate(); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				errs = append(errs, fmt.Errorf("upstreams[%d].%s", i, line))
			}
		}
		cfg.Upstreams = append(cfg.Upstreams, up)
	}
	return cfg, errors.Join(errs...)
}
