// Package config reads what an operator sets: defaults, then a file, then the environment, then flags,
// each over the one before. Each package has its own Config and its own rules; this one only composes
// them.
//
// The API and the workers read the same file, but the API must not be able to call an upstream. So what
// only a worker has is turned into its Config by the package workerconfig below, which only a worker
// imports.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/goccy/go-yaml"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/seal"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// Config is everything an operator can set. Durations are written as Go does ("250ms", "24h").
type Config struct {
	RedisURL openai.Secret `yaml:"redis_url" env:"FERRY_REDIS_URL"` // may hold a password; see redisclient.Parse
	// RedisFullAt is the share of Redis' maxmemory from which new jobs are refused; default 0.8.
	RedisFullAt float64 `yaml:"redis_full_at" env:"FERRY_REDIS_FULL_AT"`

	API        API        `yaml:"api"`
	Worker     Worker     `yaml:"worker"`
	Jobs       Jobs       `yaml:"jobs"`
	Encryption Encryption `yaml:"encryption"`
	Dashboard  Dashboard  `yaml:"dashboard"`
	Log        Log        `yaml:"log"`
	Upstreams  []Upstream `yaml:"upstreams"` // the first is the default

	redisSet bool       // by the operator, if only to the default
	spoolSet bool       // likewise
	ring     *seal.Ring // of Encryption's keys
}

// API is what cmd/api listens on and lets in.
type API struct {
	Addr    string        `yaml:"addr" env:"FERRY_ADDR"`         // default :8080, in dev 127.0.0.1:8080
	MaxBody int64         `yaml:"max_body" env:"FERRY_MAX_BODY"` // largest request in bytes; default 10 MiB
	MaxWait time.Duration `yaml:"max_wait" env:"FERRY_MAX_WAIT"` // longest ?wait=; default 5m
}

// Worker is how cmd/worker works.
type Worker struct {
	AdminAddr   string        `yaml:"admin_addr" env:"FERRY_ADMIN_ADDR"`   // default :8081
	Concurrency int           `yaml:"concurrency" env:"FERRY_CONCURRENCY"` // calls in flight per upstream that sets none; default 64
	Poll        time.Duration `yaml:"poll" env:"FERRY_POLL"`               // default 20ms
	Drain       time.Duration `yaml:"drain" env:"FERRY_DRAIN"`             // default 30s
	SpoolDir    string        `yaml:"spool_dir" env:"FERRY_SPOOL_DIR"`     // where answers wait while Redis is away; default .ferry/spool
	SpoolLimit  int64         `yaml:"spool_limit" env:"FERRY_SPOOL_LIMIT"` // bytes per process; default 1 GiB
}

// Jobs is how jobs are kept and how patiently they are served.
type Jobs struct {
	MaxAttempts  int              `yaml:"max_attempts" env:"FERRY_MAX_ATTEMPTS"`               // default 25
	ExpiresIn    time.Duration    `yaml:"expires_in" env:"FERRY_EXPIRES_IN"`                   // default 24h
	Retention    time.Duration    `yaml:"retention" env:"FERRY_RETENTION"`                     // default 24h
	MaxRetention time.Duration    `yaml:"max_retention" env:"FERRY_MAX_RETENTION"`             // default 720h
	Durability   tasks.Durability `yaml:"durability" env:"FERRY_DURABILITY"`                   // relaxed (default) or strict
	Replicas     int              `yaml:"durability_replicas" env:"FERRY_DURABILITY_REPLICAS"` // with strict: replicas that must have a job on disk; default 0
	MaxCrashes   int              `yaml:"max_crashes" env:"FERRY_MAX_CRASHES"`                 // runs in a row that may crash; default 5
	Backoff      httpx.Backoff    `yaml:"backoff"`                                             // between the runs of a job; default 2s to 5m
}

// Dashboard is how asynqmon is shown.
type Dashboard struct {
	Mode    string        `yaml:"mode" env:"FERRY_DASHBOARD"`  // off, readonly (default; in dev full) or full
	Key     openai.Secret `yaml:"-" env:"FERRY_DASHBOARD_KEY"` // password or bearer token; default none: open to all
	KeyFile string        `yaml:"key_file"`                    // or the file that holds it
}

// Log is what is logged and how.
type Log struct {
	Format string `yaml:"format" env:"FERRY_LOG_FORMAT"` // json, text, or auto (default): text on a terminal
	Level  string `yaml:"level" env:"FERRY_LOG_LEVEL"`   // debug, info (default), warn or error
}

// Upstream is one OpenAI-compatible server.
type Upstream struct {
	Name        string                       `yaml:"name"`
	BaseURL     string                       `yaml:"base_url"`
	APIKeyEnv   string                       `yaml:"api_key_env"`  // name of the variable that holds the key
	APIKeyFile  string                       `yaml:"api_key_file"` // or of the file
	Concurrency int                          `yaml:"concurrency"`  // calls in flight per worker
	MaxAnswer   int64                        `yaml:"max_answer"`   // bytes; default 32 MiB
	Pool        httpx.Pool                   `yaml:"pool"`
	Budget      httpx.BudgetConfig           `yaml:"budget"`
	Breaker     Breaker                      `yaml:"breaker"`
	Policies    map[openai.Kind]httpx.Policy `yaml:"policies"` // chat, generate, embeddings

	// Key is what the two above name. It is no setting, and exported so that fmt sees that it is a secret.
	Key openai.Secret `yaml:"-"`
}

// Breaker is when an upstream is not called. Zero fields take the defaults of breaker.Config.
type Breaker struct {
	Window       time.Duration `yaml:"window"`
	MinCalls     int           `yaml:"min_calls"`
	FailureRatio float64       `yaml:"failure_ratio"`
	HardFailures int           `yaml:"hard_failures"`
	SlowCall     time.Duration `yaml:"slow_call"`
	SlowRatio    float64       `yaml:"slow_ratio"`
	OpenFor      time.Duration `yaml:"open_for"`
	MaxOpenFor   time.Duration `yaml:"max_open_for"`
	Probes       int           `yaml:"probes"`
	ProbeLease   time.Duration `yaml:"probe_lease"`
	Successes    int           `yaml:"successes"`
	Ramp         time.Duration `yaml:"ramp"`
}

const (
	defaultRedisURL  = "redis://127.0.0.1:6379/0"
	defaultAddr      = ":8080"
	defaultAdminAddr = ":8081"
	defaultSpoolDir  = ".ferry/spool"
	// defaultFile is read if it is there and no other is named.
	defaultFile = "ferry.yaml"
)

// ErrNoUpstream says that nothing is configured to call.
var ErrNoUpstream = errors.New("config: no upstream: set OPENAI_API_KEY, or OPENAI_BASE_URL for another server, or upstreams in ferry.yaml")

// Source is where settings come from besides the defaults.
type Source struct {
	Base         func(*Config)       // changes the defaults, of which only those of texts are known here; may be nil
	File         string              // "": ferry.yaml if it is there, or FERRY_CONFIG
	Getenv       func(string) string // the environment
	Over         func(*Config)       // flags; may be nil
	NeedUpstream bool                // no upstream is a problem: see ErrNoUpstream
	NoKeys       bool                // leave the keys of upstreams alone: the API calls none, and should not have them
}

// Load reads a configuration. A file that cannot be read ends it at once; all other problems are reported
// together, each with its key. No upstream is no problem unless one is needed: ferry dev brings its own.
func Load(src Source) (*Config, error) {
	cfg := &Config{}
	if err := cfg.readFile(src); err != nil {
		return nil, err
	}
	err := cfg.readEnv(src.Getenv)
	if src.Over != nil {
		src.Over(cfg)
	}
	cfg.complete(src)
	if src.NeedUpstream && len(cfg.Upstreams) == 0 {
		err = errors.Join(err, ErrNoUpstream)
	}
	if err := errors.Join(err, cfg.readSecrets(src), cfg.Validate()); err != nil {
		return nil, err
	}
	return cfg, nil
}

// complete fills what nobody has set. It comes last, because a section of a file that is there and empty
// ("log:") would wipe out what it finds.
func (c *Config) complete(src Source) {
	base := Config{
		RedisURL:  defaultRedisURL,
		API:       API{Addr: defaultAddr},
		Worker:    Worker{AdminAddr: defaultAdminAddr, SpoolDir: defaultSpoolDir},
		Dashboard: Dashboard{Mode: "readonly"},
		Log:       Log{Format: "auto", Level: "info"},
	}
	if src.Base != nil {
		src.Base(&base)
	}
	c.redisSet = c.RedisURL != ""
	c.RedisURL = cmp.Or(c.RedisURL, base.RedisURL)
	c.RedisFullAt = cmp.Or(c.RedisFullAt, redisclient.DefaultFullAt)
	c.API.Addr = cmp.Or(c.API.Addr, base.API.Addr)
	c.Worker.AdminAddr = cmp.Or(c.Worker.AdminAddr, base.Worker.AdminAddr)
	c.spoolSet = c.Worker.SpoolDir != ""
	c.Worker.SpoolDir = cmp.Or(c.Worker.SpoolDir, base.Worker.SpoolDir)
	c.Dashboard.Mode = cmp.Or(c.Dashboard.Mode, base.Dashboard.Mode)
	c.Log.Format = cmp.Or(c.Log.Format, base.Log.Format)
	c.Log.Level = cmp.Or(c.Log.Level, base.Log.Level)
}

func (c *Config) readFile(src Source) error {
	name, optional := src.File, false
	if name == "" {
		name = src.Getenv("FERRY_CONFIG")
	}
	if name == "" {
		name, optional = defaultFile, true
	}
	text, err := os.ReadFile(name)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) { // EOF: a file without settings
		// The lines around the problem are shown, and Redis' password or a key may stand in one.
		shown := credentials.ReplaceAllString(yaml.FormatError(err, false, true), "://[redacted]@")
		shown = encryptionKey.ReplaceAllString(shown, "[redacted]")
		return fmt.Errorf("config: %s: %s", name, openai.Redact(shown))
	}
	return nil
}

var (
	credentials   = regexp.MustCompile(`://[^@/\s]*@`)
	encryptionKey = regexp.MustCompile(`[A-Za-z0-9+/_-]{40,}=*`) // what 32 bytes look like
)

// readEnv reads one variable at a time, so that a problem can be given its name.
func (c *Config) readEnv(getenv func(string) string) error {
	var errs []error
	for _, key := range variables() {
		value := getenv(key)
		if value == "" {
			continue
		}
		err := env.ParseWithOptions(c, env.Options{Environment: map[string]string{key: value}})
		if parse, ok := errors.AsType[env.ParseError](err); ok {
			err = parse.Err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if base, key := getenv("OPENAI_BASE_URL"), getenv("OPENAI_API_KEY"); len(c.Upstreams) == 0 && (base != "" || key != "") {
		u := Upstream{Name: "openai", BaseURL: cmp.Or(base, "https://api.openai.com/v1")}
		if key != "" { // a server of one's own may ask for none
			u.APIKeyEnv = "OPENAI_API_KEY"
		}
		c.Upstreams = []Upstream{u}
	}
	return errors.Join(errs...)
}

// variables are the names in the env tags.
func variables() []string {
	params, err := env.GetFieldParams(&Config{})
	if err != nil {
		return nil // only a malformed tag, which the first test shows
	}
	var names []string
	for _, p := range params {
		if p.Key != "" {
			names = append(names, p.Key)
		}
	}
	return names
}

func (c *Config) readSecrets(src Source) error {
	var errs []error
	for i := range c.Upstreams {
		if src.NoKeys {
			break
		}
		if err := c.Upstreams[i].readKey(src.Getenv); err != nil {
			errs = append(errs, fmt.Errorf("upstreams[%d].%w", i, err))
		}
	}
	var err error
	if c.ring, err = c.Encryption.ring(src.Getenv); err != nil {
		errs = append(errs, err)
	}
	if c.Dashboard.KeyFile != "" && c.Dashboard.Key == "" {
		secret, err := readSecretFile(c.Dashboard.KeyFile)
		c.Dashboard.Key = secret
		if err != nil {
			errs = append(errs, fmt.Errorf("dashboard.key_file: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (u *Upstream) readKey(getenv func(string) string) (err error) {
	switch {
	case u.APIKeyEnv != "" && u.APIKeyFile != "":
		return errors.New("api_key_env: give it or api_key_file, not both")
	case u.APIKeyEnv != "":
		if u.Key = openai.Secret(getenv(u.APIKeyEnv)); u.Key == "" {
			return fmt.Errorf("api_key_env: the variable %s is not set", u.APIKeyEnv)
		}
	case u.APIKeyFile != "":
		if u.Key, err = readSecretFile(u.APIKeyFile); err != nil {
			return fmt.Errorf("api_key_file: %w", err)
		}
	}
	return nil
}

func readSecretFile(name string) (openai.Secret, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(text))
	if secret == "" {
		return "", fmt.Errorf("%s is empty", name)
	}
	return openai.Secret(secret), nil
}

// Validate joins every problem, each with its key.
func (c *Config) Validate() error {
	var errs []error
	under := func(prefix string, err error) {
		if err == nil {
			return
		}
		for line := range strings.Lines(err.Error()) {
			errs = append(errs, errors.New(prefix+strings.TrimSuffix(line, "\n")))
		}
	}
	if _, err := redisclient.Parse(c.RedisURL.Reveal()); err != nil {
		errs = append(errs, errors.New("redis_url: "+strings.TrimPrefix(err.Error(), "redis url: ")))
	}
	if c.RedisFullAt <= 0 || c.RedisFullAt > 1 {
		errs = append(errs, fmt.Errorf("redis_full_at: %g is not above 0 and at most 1", c.RedisFullAt))
	}
	under("jobs.", c.TasksConfig().WithDefaults().Validate())
	if !slices.Contains([]string{"off", "readonly", "full"}, c.Dashboard.Mode) {
		errs = append(errs, fmt.Errorf("dashboard.mode: %q is not one of off, readonly, full", c.Dashboard.Mode))
	}
	if !slices.Contains([]string{"auto", "json", "text"}, c.Log.Format) {
		errs = append(errs, fmt.Errorf("log.format: %q is not one of auto, json, text", c.Log.Format))
	}
	if _, err := c.Log.level(); err != nil {
		errs = append(errs, err)
	}
	if c.Worker.Concurrency < 0 {
		errs = append(errs, fmt.Errorf("worker.concurrency: %d is negative", c.Worker.Concurrency))
	}
	if c.Worker.Poll < 0 {
		errs = append(errs, fmt.Errorf("worker.poll: %s is negative", c.Worker.Poll))
	}
	if c.Worker.Drain < 0 {
		errs = append(errs, fmt.Errorf("worker.drain: %s is negative", c.Worker.Drain))
	}
	if c.Worker.SpoolLimit < 0 {
		errs = append(errs, fmt.Errorf("worker.spool_limit: %d is negative", c.Worker.SpoolLimit))
	}
	seen := make(map[string]bool)
	for i, u := range c.Upstreams {
		prefix := fmt.Sprintf("upstreams[%d].", i)
		under(prefix, c.OpenAI(u).WithDefaults().Validate())
		for _, kind := range slices.Sorted(maps.Keys(u.Policies)) {
			if !kind.Valid() {
				errs = append(errs, fmt.Errorf("%spolicies: %q is not one of chat, generate, embeddings", prefix, kind))
			}
		}
		if seen[u.Name] {
			errs = append(errs, fmt.Errorf("%sname: %q is there twice", prefix, u.Name))
		}
		seen[u.Name] = true
	}
	return errors.Join(errs...)
}

// SetRedisURL is for a flag: an empty one changes nothing.
func (c *Config) SetRedisURL(url string) {
	if url != "" {
		c.RedisURL = openai.Secret(url)
	}
}

// RedisURLSet reports whether the operator named a Redis: ferry dev brings its own otherwise.
func (c *Config) RedisURLSet() bool { return c.redisSet }

// SpoolDirSet reports whether the operator named a directory for answers: one that cannot be used is then
// an error, and the default is not.
func (c *Config) SpoolDirSet() bool { return c.spoolSet }

// TasksConfig is the part package tasks has.
func (c *Config) TasksConfig() tasks.Config {
	return tasks.Config{
		MaxAttempts: c.Jobs.MaxAttempts, ExpiresIn: c.Jobs.ExpiresIn,
		Retention: c.Jobs.Retention, MaxRetention: c.Jobs.MaxRetention, Keys: c.ring,
		Durability: c.Jobs.Durability, Replicas: c.Jobs.Replicas, MaxCrashes: c.Jobs.MaxCrashes,
	}
}

// RedisNeeds is what has been promised to clients that Redis must keep.
func (c *Config) RedisNeeds() redisclient.Needs {
	return redisclient.Needs{Strict: c.Jobs.Durability == tasks.Strict, Replicas: c.Jobs.Replicas}
}

// OpenAI is the part of an upstream that package openai has.
func (c *Config) OpenAI(u Upstream) openai.Config {
	return openai.Config{
		Name: u.Name, BaseURL: u.BaseURL, APIKey: u.Key, Concurrency: cmp.Or(u.Concurrency, c.Worker.Concurrency),
		MaxAnswer: u.MaxAnswer, Pool: u.Pool, Budget: u.Budget, Policies: u.Policies,
	}
}

// Breaker is the part of an upstream that package breaker has.
func (c *Config) Breaker(u Upstream) breaker.Config {
	b := u.Breaker
	return breaker.Config{
		Name: u.Name, Window: b.Window, MinCalls: b.MinCalls, FailureRatio: b.FailureRatio, HardFailures: b.HardFailures,
		SlowCall: b.SlowCall, SlowRatio: b.SlowRatio, OpenFor: b.OpenFor, MaxOpenFor: b.MaxOpenFor,
		Probes: b.Probes, ProbeLease: b.ProbeLease, Successes: b.Successes, Ramp: b.Ramp,
	}
}

// Breakers are the breakers of all upstreams, by name.
func (c *Config) Breakers() map[string]breaker.Config {
	all := make(map[string]breaker.Config, len(c.Upstreams))
	for _, u := range c.Upstreams {
		all[u.Name] = c.Breaker(u)
	}
	return all
}

// UpstreamNames are the names jobs may give, the default first.
func (c *Config) UpstreamNames() []string {
	names := make([]string, len(c.Upstreams))
	for i, u := range c.Upstreams {
		names[i] = u.Name
	}
	return names
}
