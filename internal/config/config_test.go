package config_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/seal"
)

type vars map[string]string

func (v vars) getenv(name string) string { return v[name] }

// write makes a file and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ferry.yaml")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// load reads a file with this text, and an environment.
func load(t *testing.T, text string, env vars) (*config.Config, error) {
	t.Helper()
	return config.Load(config.Source{File: write(t, text), Getenv: env.getenv})
}

const oneUpstream = "upstreams: [{name: a, base_url: http://a/v1}]\n"

func TestWithoutAnythingTheDefaultsHold(t *testing.T) {
	t.Chdir(t.TempDir())
	cfg, err := config.Load(config.Source{Getenv: vars{}.getenv})
	require.NoError(t, err)
	require.Equal(t, "redis://127.0.0.1:6379/0", cfg.RedisURL.Reveal())
	require.Equal(t, ":8080", cfg.API.Addr)
	require.Equal(t, ":8081", cfg.Worker.AdminAddr)
	require.Equal(t, "readonly", cfg.Dashboard.Mode)
	require.Equal(t, config.Log{Format: "auto", Level: "info"}, cfg.Log)
	require.Empty(t, cfg.Upstreams)
	require.False(t, cfg.RedisURLSet())
}

// The later one wins: defaults, other defaults, file, environment, flags.
func TestEachSourceIsOverTheOneBefore(t *testing.T) {
	base := func(c *config.Config) {
		c.API.Addr, c.Worker.AdminAddr, c.Log.Level, c.Dashboard.Mode = "base", "base", "warn", "full"
	}
	over := func(c *config.Config) { c.API.Addr = "flag" }
	cfg, err := config.Load(config.Source{
		Base: base, Over: over,
		File:   write(t, "api: {addr: file}\nworker: {admin_addr: file, concurrency: 7}\nlog: {level: error}\njobs: {retention: 2h}\n"),
		Getenv: vars{"FERRY_ADDR": "env", "FERRY_ADMIN_ADDR": "env", "FERRY_RETENTION": "3h", "FERRY_EXPIRES_IN": ""}.getenv,
	})
	require.NoError(t, err)
	require.Equal(t, "flag", cfg.API.Addr)
	require.Equal(t, "env", cfg.Worker.AdminAddr)
	require.Equal(t, 3*time.Hour, cfg.Jobs.Retention)
	require.Equal(t, "error", cfg.Log.Level, "from the file")
	require.Equal(t, 7, cfg.Worker.Concurrency, "from the file")
	require.Equal(t, "full", cfg.Dashboard.Mode, "from other defaults")
	require.Zero(t, cfg.Jobs.ExpiresIn, "an empty variable sets nothing")
}

func TestTheFileIsFound(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("ferry.yaml", []byte("api: {addr: here}"), 0o600))
	other := write(t, "api: {addr: there}")
	tests := []struct {
		name, file string
		env        vars
		want       string
	}{
		{"ferry.yaml if it is there", "", nil, "here"},
		{"FERRY_CONFIG over it", "", vars{"FERRY_CONFIG": other}, "there"},
		{"a flag over that", "ferry.yaml", vars{"FERRY_CONFIG": other}, "here"},
	}
	for _, tt := range tests {
		cfg, err := config.Load(config.Source{File: tt.file, Getenv: tt.env.getenv})
		require.NoError(t, err, tt.name)
		require.Equal(t, tt.want, cfg.API.Addr, tt.name)
	}
	_, err := config.Load(config.Source{File: "missing.yaml", Getenv: vars{}.getenv})
	require.ErrorContains(t, err, "missing.yaml: no such file", "a file that was named must be there")
}

func TestAFileWithoutSettingsIsFine(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing yet\n", "---\n", "{}\n", "api:\n", "log:\n  # level: debug\ndashboard:\n", "upstreams:\n", "upstreams: []\n"} {
		cfg, err := load(t, text, nil)
		require.NoError(t, err, "%q", text)
		require.Equal(t, config.Dashboard{Mode: "readonly"}, cfg.Dashboard, "%q", text)
		require.Equal(t, config.Log{Format: "auto", Level: "info"}, cfg.Log, "%q", text)
	}
}

func TestAFileIsReadStrictly(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"an unknown key shows its line", "log:\n  level: info\napi:\n  adr: x\n", `>  4 |   adr: x`},
		{"an unknown key is named", "log:\n  lvl: info\n", `unknown field "lvl"`},
		{"an unknown section", "redis: x\n", `unknown field "redis"`},
		{"an unknown key of an upstream", "upstreams:\n  - name: a\n    api_key: sk-1\n", `unknown field "api_key"`},
		{"the dashboard's key does not belong there", "dashboard: {key: x}\n", `unknown field "key"`},
		{"a key twice", "log: {level: info}\nlog: {level: warn}\n", `"log" already defined`},
		{"a number for a duration", "jobs: {retention: 5}\n", "[1:19]"},
		{"text for a number", "worker: {concurrency: many}\n", "cannot unmarshal"},
		{"a word for a duration", "jobs: {retention: soon}\n", "invalid duration"},
		{"no YAML", "a: [\n", "config: "},
		{"a jitter that is none", "jobs: {backoff: {jitter: some}}\n", "some"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.text, nil)
			require.ErrorContains(t, err, tt.want)
			require.ErrorContains(t, err, "ferry.yaml: ")
		})
	}
}

// The lines around a mistake are shown, and they may hold what nobody should see.
func TestAMistakeInAFileShowsNoPassword(t *testing.T) {
	_, err := load(t, "redis_url: redis://ferry:hunter2@h:6379/0\nlgo: {}\nupstreams: [{api_key: sk-proj-0123456789}]\n", nil)
	require.ErrorContains(t, err, "redis://[redacted]@h:6379/0")
	require.NotContains(t, err.Error(), "hunter2")
	require.NotContains(t, err.Error(), "sk-proj")
}

func TestEveryProblemIsNamedAtOnce(t *testing.T) {
	_, err := load(t, `
redis_url: http://:hunter2@h
jobs: {max_attempts: -1, expires_in: 1ms, retention: 48h, max_retention: 24h}
worker: {concurrency: -1, poll: -1s, drain: -1s}
encryption: {keys: [{id: K, key_env: GOOD_KEY}, {id: k1}, {id: k2, key_env: X, key_file: /x}, {id: k3, key_env: NOT_SET}, {id: k4, key_file: /nowhere/k}, {id: k5, key_env: SHORT_KEY}]}
dashboard: {mode: open, key_file: /nowhere/key}
log: {format: xml, level: loud}
upstreams:
  - {name: A, base_url: nowhere, api_key_env: NOT_SET}
  - {name: b, base_url: http://b/v1, api_key_env: X, api_key_file: /x}
  - {name: b, base_url: http://b/v1, api_key_file: /nowhere/b}
  - name: d
    base_url: http://d/v1
    concurrency: 100000
    max_answer: -1
    pool: {max_conns: -1}
    budget: {ratio: 7}
    policies: {chat: {total: 1s, attempt: 2s}, poem: {}, embedding: {}}
`, vars{"FERRY_MAX_BODY": "ten", "FERRY_MAX_WAIT": "soon", "GOOD_KEY": sealKey('1'), "SHORT_KEY": "hunter2"})
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	for _, want := range []string{
		"FERRY_MAX_BODY: strconv.ParseInt",
		"FERRY_MAX_WAIT: unable to parse duration",
		"upstreams[0].api_key_env: the variable NOT_SET is not set",
		"upstreams[1].api_key_env: give it or api_key_file, not both",
		"upstreams[2].api_key_file: open /nowhere/b",
		"encryption.keys[0].id: the id of a key is 1 to 32",
		"encryption.keys[1].key_env: give it or key_file",
		"encryption.keys[2].key_env: give it or key_file",
		"encryption.keys[3].key_env: the variable NOT_SET is not set",
		"encryption.keys[4].key_file: open /nowhere/k",
		"encryption.keys[5].key_env: a key is 32 bytes",
		"dashboard.key_file: open /nowhere/key",
		`redis_url: unknown scheme "http"`,
		"jobs.max_attempts: -1",
		"jobs.expires_in: 1ms",
		"jobs.retention: 48h0m0s is above max_retention 24h0m0s",
		`dashboard.mode: "open" is not one of off, readonly, full`,
		`log.format: "xml" is not one of auto, json, text`,
		`log.level: "loud" is not one of debug, info, warn, error`,
		"worker.concurrency: -1",
		"worker.poll: -1s",
		"worker.drain: -1s",
		`upstreams[0].name: "A" must be`,
		"upstreams[0].base_url: must be an http or https URL",
		`upstreams[2].name: "b" is there twice`,
		"upstreams[3].concurrency: 100000",
		"upstreams[3].max_answer: -1",
		"upstreams[3].pool.max_conns: -1",
		"upstreams[3].budget.ratio: 7",
		"upstreams[3].policies.chat.attempt: 2s is above total 1s",
		`upstreams[3].policies: "embedding" is not one of`,
		`upstreams[3].policies: "poem" is not one of`,
	} {
		found := 0
		for _, line := range lines {
			if strings.HasPrefix(line, want) {
				found++
			}
		}
		require.Equal(t, 1, found, "%s in:\n%s", want, err)
	}
	require.NotContains(t, err.Error(), "hunter2")
}

func TestKeysComeFromVariablesAndFiles(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("  sk-from-file\n"), 0o600))
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, []byte("\n"), 0o600))
	upstream := func(setting string) string { return "upstreams: [{name: a, base_url: http://a/v1, " + setting + "}]" }

	cfg, err := load(t, upstream("api_key_env: MY_KEY"), vars{"MY_KEY": "sk-from-env"})
	require.NoError(t, err)
	require.Equal(t, "sk-from-env", cfg.OpenAI(cfg.Upstreams[0]).APIKey.Reveal())

	cfg, err = load(t, upstream("api_key_file: "+key), nil)
	require.NoError(t, err)
	require.Equal(t, "sk-from-file", cfg.OpenAI(cfg.Upstreams[0]).APIKey.Reveal())

	cfg, err = load(t, upstream("concurrency: 1"), vars{"OPENAI_API_KEY": "sk-unasked"})
	require.NoError(t, err)
	require.Empty(t, cfg.OpenAI(cfg.Upstreams[0]).APIKey.Reveal(), "a key goes only where it was sent")

	_, err = load(t, upstream("api_key_file: "+empty), nil)
	require.ErrorContains(t, err, "upstreams[0].api_key_file: "+empty+" is empty")
	_, err = load(t, upstream("api_key_env: OPENAI_API_KEY"), nil)
	require.ErrorContains(t, err, "the variable OPENAI_API_KEY is not set", "who names it means it")
}

func TestTheAPINeedsNoKeys(t *testing.T) {
	cfg, err := config.Load(config.Source{
		NoKeys: true, Getenv: vars{"SET": "sk-0123456789"}.getenv,
		File: write(t, "upstreams:\n- {name: a, base_url: http://a/v1, api_key_env: NOT_SET}\n- {name: b, base_url: http://b/v1, api_key_env: SET}\n- {name: c, base_url: http://c/v1, api_key_file: /nowhere}\n"),
	})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, cfg.UpstreamNames())
	require.Empty(t, cfg.Upstreams[1].Key.Reveal(), "what it cannot use it does not have")
}

func TestTheDashboardsKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("from-file\n"), 0o600))
	cfg, err := load(t, "dashboard: {key_file: "+file+"}", nil)
	require.NoError(t, err)
	require.Equal(t, "from-file", cfg.Dashboard.Key.Reveal())
	cfg, err = load(t, "dashboard: {key_file: "+file+"}", vars{"FERRY_DASHBOARD_KEY": "from-env"})
	require.NoError(t, err)
	require.Equal(t, "from-env", cfg.Dashboard.Key.Reveal())
}

// sealKey is a key of one character over and over.
func sealKey(b byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, seal.KeySize))
}

func TestEncryptionKeys(t *testing.T) {
	cfg, err := load(t, "", nil)
	require.NoError(t, err)
	require.Nil(t, cfg.TasksConfig().Keys, "without keys nothing is encrypted")

	file := write(t, sealKey('1')+"\n")
	cfg, err = config.Load(config.Source{
		NoKeys: true, Getenv: vars{"NEW": sealKey('2')}.getenv,
		File: write(t, "encryption: {keys: [{id: k2, key_env: NEW}, {id: k1, key_file: "+file+"}]}"),
	})
	require.NoError(t, err, "the API needs them too")
	ring := cfg.TasksConfig().Keys
	require.Contains(t, string(ring.Seal(nil, nil, nil)), "k2", "the first key seals")
	k1, err := seal.ParseKey("k1", sealKey('1'))
	require.NoError(t, err)
	before, err := seal.New(k1)
	require.NoError(t, err)
	_, err = ring.Open(before.Seal(nil, nil, nil), nil)
	require.NoError(t, err, "all keys open")

	_, err = load(t, "encryption: {keys: [{id: k1, key_env: K}, {id: k1, key_env: K}]}", vars{"K": sealKey('1')})
	require.ErrorContains(t, err, `encryption.keys: seal: the id "k1" is there twice`)
}

// A key ends up in the wrong place sooner or later, and then in a terminal, a log, a ticket.
func TestAKeyInTheWrongPlaceIsNotShown(t *testing.T) {
	key := sealKey('k')
	for _, text := range []string{
		"encryption: {keys: [{id: k1, key_env: " + key + "}]}",
		"encryption: {keys: [{id: k1, key_file: " + key + "}]}",
		"encryption: {keys: [{id: " + key + ", key_env: K}]}",
		"encryption:\n  keys:\n  - id: k1\n    key: " + key + "\n",
		"encryption:\n  key: " + key + "\n",
		"encryption: {keys: [" + key + "]}",
		"encryption: {keys: " + key + "}",
		"encryption: {keys: [{id: k1, key: " + hex.EncodeToString([]byte(key)) + "}]}",
	} {
		_, err := load(t, text, vars{"K": key})
		require.ErrorContains(t, err, "key", text)
		require.NotContains(t, err.Error(), key[:8], text)
		require.NotContains(t, err.Error(), hex.EncodeToString([]byte(key[:8])), text)
	}
}

func TestTheUsualVariablesMakeAnUpstream(t *testing.T) {
	tests := []struct {
		name      string
		file      string
		env       vars
		want      []string
		base, key string
	}{
		{"a key alone", "", vars{"OPENAI_API_KEY": "sk-1"}, []string{"openai"}, "https://api.openai.com/v1", "sk-1"},
		{"a server that asks for none", "", vars{"OPENAI_BASE_URL": "http://h/v1"}, []string{"openai"}, "http://h/v1", ""},
		{"both", "", vars{"OPENAI_BASE_URL": "http://h/v1", "OPENAI_API_KEY": "sk-1"}, []string{"openai"}, "http://h/v1", "sk-1"},
		{"not beside a file that has some", oneUpstream, vars{"OPENAI_API_KEY": "sk-1"}, []string{"a"}, "http://a/v1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := load(t, tt.file, tt.env)
			require.NoError(t, err)
			require.Equal(t, tt.want, cfg.UpstreamNames())
			up := cfg.OpenAI(cfg.Upstreams[0])
			require.Equal(t, tt.base, up.BaseURL)
			require.Equal(t, tt.key, up.APIKey.Reveal())
		})
	}
}

func TestRedisURLSet(t *testing.T) {
	const byDefault = "redis://127.0.0.1:6379/0"
	tests := []struct {
		name string
		file string
		env  vars
		flag string
		want bool
	}{
		{"by nobody", "", nil, "", false},
		{"by the file", "redis_url: redis://h:1", nil, "", true},
		{"by the environment", "", vars{"FERRY_REDIS_URL": "redis://h:1"}, "", true},
		{"by a flag", "", nil, "redis://h:1", true},
		{"to the default, which counts", "", vars{"FERRY_REDIS_URL": byDefault}, "", true},
	}
	for _, tt := range tests {
		cfg, err := config.Load(config.Source{
			File: write(t, tt.file), Getenv: tt.env.getenv,
			Over: func(c *config.Config) { c.SetRedisURL(tt.flag) },
		})
		require.NoError(t, err, tt.name)
		require.Equal(t, tt.want, cfg.RedisURLSet(), tt.name)
	}
}

func TestAnUpstreamTakesTheWorkersConcurrency(t *testing.T) {
	cfg, err := load(t, "worker: {concurrency: 5}\nupstreams:\n- {name: a, base_url: http://a}\n- {name: b, base_url: http://b, concurrency: 9}\n", nil)
	require.NoError(t, err)
	require.Equal(t, 5, cfg.OpenAI(cfg.Upstreams[0]).Concurrency)
	require.Equal(t, 9, cfg.OpenAI(cfg.Upstreams[1]).Concurrency)
}

func TestAnUpstreamsSettingsReachItsPackages(t *testing.T) {
	cfg, err := load(t, `
upstreams:
- name: a
  base_url: http://a/v1
  max_answer: 1000
  pool: {max_conns: 3, wait: 2s, http2: true}
  budget: {ratio: 0.1, off: true}
  policies:
    chat: {max_attempts: 9, backoff: {base: 1s, max: 9s, jitter: full}, unknown: give_up, hedge: {on: true, delay: 1s}}
`, nil)
	require.NoError(t, err)
	got := cfg.OpenAI(cfg.Upstreams[0])
	require.EqualValues(t, 1000, got.MaxAnswer)
	require.Equal(t, httpx.Pool{MaxConns: 3, Wait: 2 * time.Second, HTTP2: true}, got.Pool)
	require.Equal(t, httpx.BudgetConfig{Ratio: 0.1, Off: true}, got.Budget)
	require.Equal(t, httpx.Policy{
		MaxAttempts: 9, Backoff: httpx.Backoff{Base: time.Second, Max: 9 * time.Second, Jitter: httpx.JitterFull},
		Unknown: httpx.GiveUp, Hedge: httpx.Hedge{On: true, Delay: time.Second},
	}, got.Policies[openai.Chat])
}

func TestAConfigurationCanBeLogged(t *testing.T) {
	cfg, err := load(t, "redis_url: redis://:hunter2@h:1\nupstreams: [{name: a, base_url: http://a/v1, api_key_env: K}]\n"+
		"encryption: {keys: [{id: k1, key_env: E}]}",
		vars{"K": "sk-hunter2", "FERRY_DASHBOARD_KEY": "hunter2", "E": hex.EncodeToString([]byte("hunter2 hunter2 hunter2 hunter2 "))})
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "config", cfg)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "config", cfg)
	for _, text := range []string{log.String(), fmt.Sprintf("%v %+v %#v", cfg, *cfg, cfg)} {
		require.NotContains(t, text, "hunter2")
		require.NotContains(t, text, "68756e746572", "as hexadecimal")
		require.NotContains(t, text, "104 117 110 116", "as bytes")
	}
}

func TestLogger(t *testing.T) {
	tests := []struct {
		log  config.Log
		want string
	}{
		{config.Log{Format: "json", Level: "info"}, `"msg":"shown"`},
		{config.Log{Format: "auto", Level: "info"}, `"msg":"shown"`}, // a buffer is no terminal
		{config.Log{Format: "text", Level: "info"}, "INF shown"},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		log := tt.log.Logger(&b)
		log.Debug("hidden")
		log.Info("shown")
		require.Contains(t, b.String(), tt.want)
		require.NotContains(t, b.String(), "hidden")
		require.NotContains(t, b.String(), "\x1b", "colours are for terminals")
	}
	var b bytes.Buffer
	config.Log{Format: "json", Level: "debug"}.Logger(&b).Debug("shown")
	require.Contains(t, b.String(), "shown")
}

func TestVersionIsNeverEmpty(t *testing.T) { require.NotEmpty(t, config.Version()) }
