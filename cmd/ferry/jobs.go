package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// outageNote is the attempt after which a person is told why nothing happens: about two seconds into
// an outage, which is where the default patience of the verbs that do not wait ends.
const outageNote = 5

// serverFlags are the flags of every command that talks to a server.
type serverFlags struct {
	URL      string        `placeholder:"URL" help:"Address of the server (default: FERRY_URL)."`
	Patience time.Duration `default:"2s" help:"How long to try a server that is unreachable or busy (default 2s)."`
	JSON     bool          `name:"json" help:"Print the server's JSON."`
}

// dial returns a client of the server. Its errors are usage errors: no connection is made yet.
func (f serverFlags) dial(env Env) (*client.Client, error) {
	cfg := client.Config{BaseURL: f.URL, APIKey: client.Secret(strings.TrimSpace(env.Getenv("FERRY_API_KEY"))), Patience: f.Patience}
	if cfg.BaseURL == "" {
		cfg.BaseURL = env.Getenv("FERRY_URL")
	}
	if f.Patience == 0 {
		cfg.Patience = -1 // the client takes 0 for its default
	}
	cfg.OnRetry = func(attempts int, err error, _ time.Duration) {
		if attempts == outageNote {
			fmt.Fprintln(env.Stderr, "ferry: still trying: "+explain(err))
		}
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// JobArg names a job.
type JobArg struct {
	ID string `arg:"" help:"ID of the job."`
}

// GetCmd is `ferry get`.
type GetCmd struct {
	JobArg
	serverFlags
}

// Run shows the job with its ledger and its answer.
func (g *GetCmd) Run(env Env) error {
	c, err := g.dial(env)
	if err != nil {
		return err
	}
	job, err := c.Get(env.Ctx, g.ID)
	if err != nil {
		return err
	}
	if g.JSON {
		return writeLine(env.Stdout, string(job.RawJSON()))
	}
	_, err = io.WriteString(env.Stdout, newView(env).job(job))
	return err
}

// WaitCmd is `ferry wait`.
type WaitCmd struct {
	JobArg
	serverFlags

	Timeout time.Duration `help:"Give up waiting after this time; the job goes on (default: none)."`
}

// Validate rejects a timeout that is over before it begins.
func (w *WaitCmd) Validate() error {
	if w.Timeout < 0 {
		return errors.New("--timeout cannot be negative")
	}
	return nil
}

// Run waits for the job's end and prints its answer. A job that ended without one is an error.
func (w *WaitCmd) Run(env Env) error {
	c, err := w.dial(env)
	if err != nil {
		return err
	}
	return w.await(env, c, w.ID, w.Timeout)
}

// await waits for a job, at most timeout unless that is 0, and prints its answer.
func (f serverFlags) await(env Env, c *client.Client, id string, timeout time.Duration) error {
	ctx := env.Ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s have passed", timeout))
		defer cancel()
	}
	job, err := c.Wait(ctx, id)
	if err != nil {
		if ctx.Err() != nil && job != nil {
			return fmt.Errorf("%s is %s and goes on, but %w; wait again with \"ferry wait %s\"", id, job.State, context.Cause(ctx), id)
		}
		return err
	}
	v := newView(env)
	if f.JSON {
		err = writeLine(env.Stdout, string(job.RawJSON()))
	} else if job.State == client.StateSucceeded {
		fmt.Fprintln(env.Stderr, v.summary(job))
		err = writeLine(env.Stdout, v.answer(job))
	}
	return errors.Join(err, unanswered(job))
}

// unanswered is the error of a job that ended without an answer, else nil.
func unanswered(job *client.Job) error {
	if job.State == client.StateSucceeded {
		return nil
	}
	reason := ""
	if job.Error != nil {
		reason = ": " + failure(job.Error)
	}
	return fmt.Errorf("%s is %s%s; see \"ferry get %s\"", job.ID, job.State, reason, job.ID)
}

// ListCmd is `ferry list`.
type ListCmd struct {
	serverFlags

	State    client.State `help:"Only jobs in this state, such as failed."`
	Kind     client.Kind  `help:"Only jobs of this kind."`
	Upstream string       `help:"Only jobs for this upstream."`
	Limit    int          `default:"20" help:"Jobs to show (default 20)."`
	After    string       `placeholder:"CURSOR" help:"Go on where the list before ended."`
}

// Validate rejects a limit that the server would take for its default.
func (l *ListCmd) Validate() error {
	if l.Limit < 1 {
		return errors.New("--limit is below 1")
	}
	return nil
}

// Run shows one page of jobs, and how to see the next.
func (l *ListCmd) Run(env Env) error {
	c, err := l.dial(env)
	if err != nil {
		return err
	}
	page, err := c.List(env.Ctx, client.ListOptions{State: l.State, Kind: l.Kind, Upstream: l.Upstream, After: l.After, Limit: l.Limit})
	if err != nil {
		return err
	}
	if l.JSON {
		return writeLine(env.Stdout, string(page.RawJSON()))
	}
	if len(page.Data) == 0 {
		fmt.Fprintln(env.Stderr, "no jobs")
		return nil
	}
	if _, err = io.WriteString(env.Stdout, newView(env).list(page.Data)); err != nil {
		return err
	}
	if page.HasMore {
		fmt.Fprintf(env.Stderr, "there are more: add --after %s\n", clean(page.Next))
	}
	return nil
}

// CancelCmd is `ferry cancel`.
type CancelCmd struct {
	JobArg
	serverFlags
}

// Run cancels the job.
func (a *CancelCmd) Run(env Env) error { return a.act(env, a.ID, (*client.Client).Cancel) }

// RetryCmd is `ferry retry`.
type RetryCmd struct {
	JobArg
	serverFlags
}

// Run queues the job once more.
func (a *RetryCmd) Run(env Env) error { return a.act(env, a.ID, (*client.Client).Retry) }

// act changes a job and prints what became of it.
func (f serverFlags) act(env Env, id string, verb func(*client.Client, context.Context, string) (*client.Job, error)) error {
	c, err := f.dial(env)
	if err != nil {
		return err
	}
	job, err := verb(c, env.Ctx, id)
	if err != nil {
		return err
	}
	if f.JSON {
		return writeLine(env.Stdout, string(job.RawJSON()))
	}
	return writeLine(env.Stdout, newView(env).summary(job))
}

// explain makes an error one line that says what to do.
func explain(err error) string {
	if e, ok := errors.AsType[*client.APIError](err); ok {
		return clean(strings.TrimSuffix(e.Message, ".") + remedy(e))
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		return clean(fmt.Sprintf(`no server there (%v): start one with "ferry dev", or set FERRY_URL`, e))
	}
	return clean(strings.TrimPrefix(err.Error(), "client: "))
}

// remedy is what the user can do about the server's refusal, where the server's message cannot know.
func remedy(e *client.APIError) string {
	switch {
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		return "; set FERRY_API_KEY to a key of this server"
	case e.Status == http.StatusNotFound && e.Code == "":
		return "; is FERRY_URL the address of a Ferry server?"
	case e.RetryAfter > 0:
		return fmt.Sprintf("; try again in %s, or wait for it with --patience", e.RetryAfter)
	case e.Status >= 500 && e.RequestID != "":
		return "; the server's log knows more under request " + e.RequestID
	}
	return ""
}
