package openai

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// Config is one upstream: an OpenAI-compatible base URL with its key, pool and policies.
type Config struct {
	Name        string                // used in queue names, keys, metrics and the API; [a-z0-9-], at most 32
	BaseURL     string                // up to and including the version, for example https://api.openai.com/v1
	APIKey      Secret                // sent as a bearer token; empty: no Authorization header
	Concurrency int                   // calls in flight per worker process; default 64
	Pool        httpx.Pool            // connections
	Budget      httpx.BudgetConfig    // share of traffic that may be retries
	Policies    map[Kind]httpx.Policy // how hard to try each kind; default by httpx's presets
	MaxAnswer   int64                 // largest answer kept, in bytes; default 32 MiB
}

const (
	defaultConcurrency = 64
	defaultMaxAnswer   = 32 << 20
)

var upstreamName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// WithDefaults fills what is zero.
func (c Config) WithDefaults() Config {
	c.BaseURL = strings.TrimRight(c.BaseURL, "/")
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	if c.MaxAnswer == 0 {
		c.MaxAnswer = defaultMaxAnswer
	}
	if c.Pool.MaxConns == 0 {
		// One call holds one connection: a smaller pool would only turn jobs away again.
		c.Pool.MaxConns = c.Concurrency
	}
	presets := httpx.Presets()
	policies := make(map[Kind]httpx.Policy, len(Kinds()))
	for _, kind := range Kinds() {
		policies[kind] = over(c.Policies[kind], presets[string(kind)])
	}
	c.Policies = policies
	return c
}

// over fills the zero fields of a policy from a preset. A limit of the preset gives way to those that were
// set: a longer one within it widens it, a shorter one around it narrows it. A negative limit is off and
// does neither.
func over(p, preset httpx.Policy) httpx.Policy {
	p.MaxAttempts = cmp.Or(p.MaxAttempts, preset.MaxAttempts)
	p.Backoff.Base = cmp.Or(p.Backoff.Base, preset.Backoff.Base)
	p.Backoff.Max = cmp.Or(p.Backoff.Max, max(preset.Backoff.Max, p.Backoff.Base))
	p.MaxInline = cmp.Or(p.MaxInline, preset.MaxInline)
	p.Total = cmp.Or(p.Total, max(preset.Total, p.Attempt, p.FirstByte))
	p.Attempt = cmp.Or(p.Attempt, within(max(preset.Attempt, p.FirstByte), p.Total))
	p.FirstByte = cmp.Or(p.FirstByte, within(preset.FirstByte, p.Attempt))
	p.Idle = cmp.Or(p.Idle, preset.Idle)
	return p.WithDefaults()
}

// within is d, or the limit around it if that is on and shorter.
func within(d, limit time.Duration) time.Duration {
	if limit > 0 {
		return min(d, limit)
	}
	return d
}

// Validate joins every problem of a configuration that [Config.WithDefaults] has completed, each with its
// key.
func (c Config) Validate() error {
	var errs []error
	if !upstreamName.MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("name: %q must be 1 to 32 of a-z, 0-9 and -, beginning with a letter or digit", c.Name))
	}
	if u, err := url.Parse(c.BaseURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		errs = append(errs, errors.New("base_url: must be an http or https URL such as https://api.openai.com/v1"))
	} else if u.User != nil || u.RawQuery != "" {
		errs = append(errs, errors.New("base_url: must have no user, password or query; give the key by api_key_env or api_key_file"))
	}
	if c.Concurrency < 1 || c.Concurrency > 10_000 {
		errs = append(errs, fmt.Errorf("concurrency: %d is not in 1 to 10000", c.Concurrency))
	}
	if c.MaxAnswer < 1 {
		errs = append(errs, fmt.Errorf("max_answer: %d is below 1 byte", c.MaxAnswer))
	}
	if err := (httpx.Config{Pool: c.Pool, Budget: c.Budget}).Validate(); err != nil {
		errs = append(errs, err) // its keys are ours
	}
	for _, kind := range Kinds() {
		err := c.Policies[kind].Validate()
		if err == nil {
			continue
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			errs = append(errs, fmt.Errorf("policies.%s.%s", kind, line))
		}
	}
	return errors.Join(errs...)
}

// Upstream calls one OpenAI-compatible server.
type Upstream struct {
	name     string
	baseURL  string
	apiKey   Secret
	policies map[Kind]httpx.Policy
	client   *httpx.Client
}

// Call is one request to an [Upstream].
type Call struct {
	Kind           Kind
	Body           []byte // sent as it is
	IdempotencyKey string // the same for every attempt of a job
	MaxAttempts    int    // what is left of the job's attempts; 0: the policy's
}

// New returns the upstream of cfg, which is completed and validated. breaker may be nil.
func New(cfg Config, breaker httpx.Breaker, hooks httpx.Hooks) (*Upstream, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	client, err := httpx.New(httpx.Config{
		Policy:   cfg.Policies[Chat],
		Pool:     cfg.Pool,
		Budget:   cfg.Budget,
		Breaker:  breaker,
		Classify: Classify,
		Hooks:    hooks,
		MaxBody:  cfg.MaxAnswer,
	})
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	return &Upstream{
		name: cfg.Name, baseURL: cfg.BaseURL, apiKey: cfg.APIKey,
		policies: cfg.Policies, client: client,
	}, nil
}

// String is the name: printing an upstream does not print its key.
func (u *Upstream) String() string { return u.name }

// Name is the configured name.
func (u *Upstream) Name() string { return u.name }

// Do makes one call: attempts and the waits between them. The error is a *[httpx.Error].
func (u *Upstream) Do(ctx context.Context, call Call) (*httpx.Response, error) {
	policy := u.policies[call.Kind]
	header := http.Header{
		"Content-Type": {"application/json"},
		"Accept":       {"application/json"},
		"User-Agent":   {"ferry"},
	}
	if u.apiKey != "" {
		header.Set("Authorization", "Bearer "+u.apiKey.Reveal())
	}
	resp, err := u.client.Do(ctx, httpx.Request{
		Method:         http.MethodPost,
		URL:            u.baseURL + call.Kind.Path(),
		Header:         header,
		Body:           call.Body,
		IdempotencyKey: call.IdempotencyKey,
		Policy:         &policy,
		MaxAttempts:    call.MaxAttempts,
	})
	if e, ok := errors.AsType[*httpx.Error](err); ok {
		u.redact(e)
	}
	return resp, err
}

// shortestKey is the length in bytes from which a key is one: a placeholder such as "none" or "x" may stand in any text.
const shortestKey = 8

// redact takes the upstream's key out of what the upstream has said. [Redact] knows the common forms of keys, and this
// one need not have any.
func (u *Upstream) redact(e *httpx.Error) {
	if len(u.apiKey) >= shortestKey {
		e.Body = bytes.ReplaceAll(e.Body, []byte(u.apiKey), []byte(redacted))
	}
}

// Stats are the connection pool's.
func (u *Upstream) Stats() httpx.Stats { return u.client.Stats() }

// Close ends idle connections. Calls in flight go on.
func (u *Upstream) Close() { u.client.Close() }
