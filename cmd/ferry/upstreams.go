package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// UpstreamsCmd is `ferry upstreams`, and `ferry upstreams open NAME`.
type UpstreamsCmd struct {
	Mode client.BreakerMode `arg:"" optional:"" help:"Force the breaker: open refuses every call, close lets every call pass, auto lets the numbers decide again."`
	Name string             `arg:"" optional:"" help:"Name of the upstream to force."`
	serverFlags
}

// Validate rejects a mode there is not, and one for nobody.
func (u *UpstreamsCmd) Validate() error {
	switch u.Mode {
	case "":
		return nil
	case client.ModeOpen, client.ModeClose, client.ModeAuto:
		if u.Name == "" {
			return fmt.Errorf("name the upstream, as in \"ferry upstreams %s openai\"", u.Mode)
		}
		return nil
	default:
		return fmt.Errorf("%q is not open, close or auto", u.Mode)
	}
}

// Run shows all upstreams, or forces the breaker of one.
func (u *UpstreamsCmd) Run(env Env) error {
	c, err := u.dial(env)
	if err != nil {
		return err
	}
	if u.Mode != "" {
		return u.override(env, c)
	}
	ups, err := c.Upstreams(env.Ctx)
	if err != nil {
		return err
	}
	if u.JSON {
		return json.NewEncoder(env.Stdout).Encode(rawList(ups))
	}
	_, err = io.WriteString(env.Stdout, newView(env).upstreams(ups))
	return err
}

// override sets the breaker's mode, and says how to go back.
func (u *UpstreamsCmd) override(env Env, c *client.Client) error {
	up, err := c.Override(env.Ctx, u.Name, u.Mode)
	if err != nil {
		return err
	}
	if u.JSON {
		return writeLine(env.Stdout, string(up.RawJSON()))
	}
	if forced(up.Breaker) {
		fmt.Fprintf(env.Stderr, "it stays so until \"ferry upstreams auto %s\"\n", clean(up.Name))
	}
	v := newView(env)
	state := v.paint(colorOfBreaker(up.Breaker.State), breakerWords(up.Breaker))
	return writeLine(env.Stdout, fmt.Sprintf("the breaker of %s is %s", clean(up.Name), state))
}

// rawList is the list as the server sent it.
func rawList(ups []client.Upstream) any {
	list := struct {
		Object string            `json:"object"`
		Data   []json.RawMessage `json:"data"`
	}{Object: "list", Data: make([]json.RawMessage, 0, len(ups))}
	for _, up := range ups {
		list.Data = append(list.Data, up.RawJSON())
	}
	return list
}

// upstreams is a table of upstreams.
func (v view) upstreams(ups []client.Upstream) string {
	rows := [][]string{{"UPSTREAM", "BREAKER", "SINCE", "NEXT PROBE", "FAILED CALLS", "READY", "TAKEN", "WAITING", "QUEUES"}}
	for _, up := range ups {
		b, jobs, queues := up.Breaker, up.Jobs, ""
		if jobs.Paused {
			queues = "paused"
		}
		rows = append(rows, []string{
			up.Name, breakerWords(b), v.when(b.Since), v.nextProbe(b), fmt.Sprintf("%d of %d", b.Failures, b.Calls),
			strconv.Itoa(jobs.Ready), strconv.Itoa(jobs.Taken), strconv.Itoa(jobs.Waiting), queues,
		})
	}
	return table(rows, func(row, column int, padded string) string {
		if row == 0 || column != 1 {
			return padded
		}
		return v.paint(colorOfBreaker(ups[row-1].Breaker.State), padded)
	})
}

// breakerWords is a breaker's state, and whether an operator has forced it.
func breakerWords(b client.Breaker) string {
	if forced(b) {
		return clean(string(b.State)) + ", forced"
	}
	return clean(string(b.State))
}

func forced(b client.Breaker) bool { return b.Mode == client.ModeOpen || b.Mode == client.ModeClose }

// nextProbe is when an open breaker lets a call through to see. One that is overdue waits for a worker to run.
func (v view) nextProbe(b client.Breaker) string {
	switch {
	case b.State == client.BreakerHalfOpen:
		return "now"
	case !b.OpenUntil.IsZero() && v.now.Sub(b.OpenUntil) > time.Second:
		return "overdue"
	}
	return v.when(b.OpenUntil)
}

// colorOfBreaker says at a glance whether calls pass.
func colorOfBreaker(state client.BreakerState) string {
	switch state {
	case client.BreakerClosed:
		return green
	case client.BreakerOpen:
		return red
	case client.BreakerHalfOpen:
		return yellow
	default:
		return plain
	}
}
