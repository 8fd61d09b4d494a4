// Package client talks to a Ferry server: it submits jobs, waits for their answers and manages them.
//
// A job accepted by the server survives whatever happens next, so the one idea here is that a call
// may be repeated without harm. Each Submit carries an Idempotency-Key: sent twice, it is still one
// job. Wait asks again for as long as it takes, across restarts of the API.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultBaseURL is where `ferry dev` listens.
const DefaultBaseURL = "http://127.0.0.1:8080"

const (
	longPoll = 30 * time.Second // longest wait asked of the server in one request
	minPoll  = time.Second      // shortest time between two polls, for servers that answer at once
	maxReply = 64 << 20         // bytes of a reply that are read; a longer one is an error
)

// errNoAnswer is the cause of an attempt that took longer than Config.Timeout.
var errNoAnswer = errors.New("no answer in time")

// Secret is a value that prints as [redacted].
type Secret string

// String hides the secret from fmt and from logs.
func (Secret) String() string { return "[redacted]" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "[redacted]" }

// Config says where the server is and how patient the client is with it. Its zero value talks to
// DefaultBaseURL without a key. No environment is read.
type Config struct {
	BaseURL string       // http or https, without /v1; default DefaultBaseURL
	APIKey  Secret       // sent as Authorization: Bearer; default none
	HTTP    *http.Client // a Timeout below 30s cuts long polls; default one without

	// Timeout bounds one attempt, on top of the time a long poll is meant to take; default 30s.
	Timeout time.Duration
	// Patience is how long after a first failure a call goes on trying a server that is unreachable
	// or busy; default 10s. Negative: one attempt.
	Patience time.Duration
	// WaitPatience is the same for Wait, once the server has answered for the job; default 5m.
	WaitPatience time.Duration

	// OnRetry, if set, is told before each pause: the attempts so far, why the last one failed, and
	// the length of the pause. It must be safe for concurrent use.
	OnRetry func(attempts int, err error, pause time.Duration)
}

// validate returns every problem of the configuration.
func (cfg Config) validate() error {
	var problems []error
	u, err := url.Parse(cfg.BaseURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		problems = append(problems, fmt.Errorf("client: base URL %q is not of the form http://host:port", cfg.BaseURL))
	}
	if strings.ContainsFunc(string(cfg.APIKey), func(r rune) bool { return r <= ' ' || r > '~' }) {
		problems = append(problems, errors.New("client: API key holds a space, a line end or a character outside ASCII"))
	}
	if cfg.Timeout < 0 {
		problems = append(problems, fmt.Errorf("client: timeout %s is negative", cfg.Timeout))
	}
	return errors.Join(problems...)
}

// Client calls one Ferry server. It is safe for concurrent use and needs no Close.
type Client struct {
	cfg Config
	rnd func() float64 // spreads the pauses of clients that failed together
}

// New returns a client for the server of cfg. It dials nothing; its error lists every problem of cfg.
func New(cfg Config) (*Client, error) {
	cfg.BaseURL = strings.TrimRight(cmp.Or(cfg.BaseURL, DefaultBaseURL), "/")
	cfg.HTTP = cmp.Or(cfg.HTTP, &http.Client{})
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	cfg.Patience = cmp.Or(cfg.Patience, 10*time.Second)
	cfg.WaitPatience = cmp.Or(cfg.WaitPatience, 5*time.Minute)
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, rnd: mathrand.Float64}, nil
}

// String names the server, and keeps the key out of %v.
func (c *Client) String() string { return "ferry client of " + c.cfg.BaseURL }

// Submit hands a job to the server and returns it as accepted: from then on it is durable. An attempt
// whose answer was lost is repeated with the same Idempotency-Key and finds the first one's job.
// A request the server rejects is an *APIError.
func (c *Client) Submit(ctx context.Context, req SubmitRequest) (*Job, error) {
	body, err := req.encode()
	if err != nil {
		return nil, err
	}
	return c.job(ctx, call{
		method:     http.MethodPost,
		path:       "/v1/jobs",
		body:       body,
		key:        cmp.Or(req.IdempotencyKey, rand.Text()),
		repeatable: true,
		patience:   c.cfg.Patience,
	})
}

// Get returns the job as it is now. An unknown ID, or one past its retention, is an *APIError with
// Status 404.
func (c *Client) Get(ctx context.Context, id string) (*Job, error) {
	return c.read(ctx, id, 0, c.cfg.Patience)
}

// Wait returns the job when it has ended, well or not: look at its State. It sits out an unreachable
// server for Config.WaitPatience, unless that server has never answered, and otherwise ends with ctx.
// On an error it returns the job as last seen beside it, or nil.
func (c *Client) Wait(ctx context.Context, id string) (*Job, error) {
	job, err := c.Get(ctx, id)
	for err == nil && !job.State.Terminal() {
		asked := time.Now()
		var next *Job
		if next, err = c.read(ctx, id, longPoll, c.cfg.WaitPatience); err != nil {
			break
		}
		job = next
		if !job.State.Terminal() {
			err = sleepUntil(ctx, asked.Add(minPoll))
		}
	}
	return job, err
}

// List returns one page of jobs, newest first, without their results and ledgers.
func (c *Client) List(ctx context.Context, opts ListOptions) (*Page, error) {
	path := "/v1/jobs"
	if q := opts.query(); len(q) > 0 {
		path += "?" + q.Encode()
	}
	page := new(Page)
	err := c.decode(ctx, call{method: http.MethodGet, path: path, repeatable: true, patience: c.cfg.Patience}, page)
	if err != nil {
		return nil, err
	}
	return page, nil
}

// All walks every page from opts.After on, with opts.Limit jobs in each. It ends at the first error,
// which is the last pair.
func (c *Client) All(ctx context.Context, opts ListOptions) iter.Seq2[*Job, error] {
	return func(yield func(*Job, error) bool) {
		for {
			page, err := c.List(ctx, opts)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, job := range page.Data {
				if !yield(job, nil) {
					return
				}
			}
			// A cursor that stands still would never end.
			if !page.HasMore || page.Next == "" || page.Next == opts.After {
				return
			}
			opts.After = page.Next
		}
	}
}

// Cancel ends a job that has not ended. One that has is an *APIError with Status 409.
//
// Cancel, Retry and Delete are not repeated when the server may have acted on them: the second
// answer would contradict the first.
func (c *Client) Cancel(ctx context.Context, id string) (*Job, error) {
	return c.act(ctx, id, "/cancel")
}

// Retry queues an ended job without an answer once more. Any other is an *APIError with Status 409.
func (c *Client) Retry(ctx context.Context, id string) (*Job, error) {
	return c.act(ctx, id, "/retry")
}

// Delete removes a job and its result. One that has not ended is an *APIError with Status 409.
func (c *Client) Delete(ctx context.Context, id string) error {
	path, err := jobPath(id)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: path, patience: c.cfg.Patience})
	return err
}

// Upstreams returns every configured upstream, in the order of the server's configuration: its breaker as
// the fleet sees it, and the jobs that wait for it.
func (c *Client) Upstreams(ctx context.Context) ([]Upstream, error) {
	var list upstreamList
	err := c.decode(ctx, call{method: http.MethodGet, path: "/v1/upstreams", repeatable: true, patience: c.cfg.Patience}, &list)
	if err != nil {
		return nil, err
	}
	return list.Data, nil
}

// Override sets the mode of an upstream's breaker for the whole fleet and returns the upstream as it is then.
// Workers follow within a second. An unknown name is an *APIError with Status 404, an unknown mode one with 400.
//
// Unlike Cancel it is repeated when its answer is lost: a mode set twice is as good as once.
func (c *Client) Override(ctx context.Context, name string, mode BreakerMode) (*Upstream, error) {
	path, err := overridePath(name, mode)
	if err != nil {
		return nil, err
	}
	up := new(Upstream)
	err = c.decode(ctx, call{method: http.MethodPost, path: path, repeatable: true, patience: c.cfg.Patience}, up)
	if err != nil {
		return nil, err
	}
	return up, nil
}

// read gets a job, and lets the server hold the answer for up to hold until the job has ended.
func (c *Client) read(ctx context.Context, id string, hold, patience time.Duration) (*Job, error) {
	path, err := jobPath(id)
	if err != nil {
		return nil, err
	}
	if hold > 0 {
		path += "?wait=" + hold.String()
	}
	return c.job(ctx, call{method: http.MethodGet, path: path, hold: hold, repeatable: true, patience: patience})
}

// act posts a verb to a job.
func (c *Client) act(ctx context.Context, id, verb string) (*Job, error) {
	path, err := jobPath(id)
	if err != nil {
		return nil, err
	}
	return c.job(ctx, call{method: http.MethodPost, path: path + verb, patience: c.cfg.Patience})
}

// job makes a call that is answered with a job.
func (c *Client) job(ctx context.Context, call call) (*Job, error) {
	job := new(Job)
	if err := c.decode(ctx, call, job); err != nil {
		return nil, err
	}
	return job, nil
}

// decode makes a call and stores its JSON answer in v. A success that is not Ferry's JSON comes from
// some other server, so the error says which address answered.
func (c *Client) decode(ctx context.Context, call call, v any) error {
	body, err := c.do(ctx, call)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("client: %s %s: %s does not answer like a Ferry server: %w", call.method, call.path, c.cfg.BaseURL, err)
	}
	return nil
}

// attempt makes one HTTP exchange and returns the body of a 2xx; any other status is an *APIError.
func (c *Client) attempt(ctx context.Context, call call) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, call.hold+c.cfg.Timeout, errNoAnswer)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, call.method, c.cfg.BaseURL+call.path, bytes.NewReader(call.body))
	if err != nil {
		return nil, err
	}
	c.setHeader(req.Header, call)
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, exchangeError(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch {
	case err != nil:
		return nil, exchangeError(ctx, err)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, newAPIError(resp, body)
	case len(body) > maxReply:
		return nil, fmt.Errorf("%w of more than %d bytes", errTooLong, maxReply)
	}
	return body, nil
}

// setHeader adds the headers of a call.
func (c *Client) setHeader(h http.Header, call call) {
	h.Set("Accept", "application/json")
	h.Set("User-Agent", "ferry-client-go")
	if call.body != nil {
		h.Set("Content-Type", "application/json")
	}
	if call.key != "" {
		h.Set("Idempotency-Key", call.key)
	}
	if c.cfg.APIKey != "" {
		h.Set("Authorization", "Bearer "+string(c.cfg.APIKey))
	}
}

// jobPath is the path of a job.
func jobPath(id string) (string, error) {
	id, err := segment("a job ID", id)
	return "/v1/jobs/" + id, err
}

// overridePath is where the breaker of an upstream takes a mode.
func overridePath(name string, mode BreakerMode) (string, error) {
	name, nameErr := segment("an upstream", name)
	verb, modeErr := segment("a breaker mode", string(mode))
	return "/v1/upstreams/" + name + "/" + verb, errors.Join(nameErr, modeErr)
}

// segment escapes one part of a path. It rejects the values that would name another resource.
func segment(what, value string) (string, error) {
	if value == "" || value == "." || value == ".." {
		return "", fmt.Errorf("client: %q is not %s", value, what)
	}
	return url.PathEscape(value), nil
}

// query is opts as the server reads it; zero fields are left out.
func (opts ListOptions) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"state":    string(opts.State),
		"kind":     string(opts.Kind),
		"upstream": opts.Upstream,
		"after":    opts.After,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if opts.Limit != 0 {
		q.Set("limit", strconv.Itoa(opts.Limit))
	}
	return q
}
