package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// SimCmd is `ferry sim`: the simulated upstream alone, for a system of several processes.
type SimCmd struct {
	Addr  string `default:"127.0.0.1:9090" help:"Address to listen on; port 0 takes a free one." placeholder:"HOST:PORT"`
	Chaos string `help:"Faults, for example 503=0.3,timeout=0.1,latency=200ms." placeholder:"FAULTS"`
	Seed  uint64 `help:"Chooses which requests fail; equal seeds fail alike."`
}

// Run serves until the context ends.
func (c SimCmd) Run(env Env) error {
	sim, err := startSim(env.Ctx, c.Addr, c.Chaos, c.Seed)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stderr, "simulated upstream at %s/v1  faults: %s\n", sim.url, orNone(c.Chaos))
	<-env.Ctx.Done()
	return sim.stop()
}

// simulated is a simulated upstream that is being served.
type simulated struct {
	url    string
	server *http.Server
	served chan error
}

func startSim(ctx context.Context, addr, chaos string, seed uint64) (*simulated, error) {
	faults, err := upstreamtest.ParseFaults(chaos)
	if err != nil {
		return nil, usageError{fmt.Errorf("--chaos: %w", err)}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulated upstream: %w", err)
	}
	s := &simulated{
		url:    "http://" + ln.Addr().String(),
		server: &http.Server{ReadHeaderTimeout: time.Minute},
		served: make(chan error, 1),
	}
	upstreamtest.New(upstreamtest.Config{Faults: faults, Seed: seed, KeepJournal: -1}).Attach(s.server)
	go func() { s.served <- s.server.Serve(ln) }()
	return s, nil
}

// stop cuts what is still being answered: the caller has gone, or is a worker that has drained.
func (s *simulated) stop() error {
	_ = s.server.Close() // only listeners that are closed already
	if err := <-s.served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("simulated upstream: %w", err)
	}
	return nil
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
