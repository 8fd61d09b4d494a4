package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/logtest"
)

func TestDevAndSimExitWithTwoOnMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("bad.yaml", []byte("api: {adr: x}"), 0o600))
	tests := []struct {
		args string
		env  map[string]string
		want string
	}{
		{args: "sim --chaos 503=2", want: "--chaos: "},
		{args: "sim --chaos sometimes", want: "--chaos: "},
		{args: "sim --seed x", want: "--seed"},
		{args: "sim here", want: "unexpected argument here"},
		{args: "dev --memory --chaos sometimes", want: "--chaos: "},
		{args: "dev --log-level loud", want: "--log-level must be one of"},
		{args: "dev --config bad.yaml", want: `unknown field "adr"`},
		{args: "dev --config missing.yaml", want: "no such file"},
		{args: "dev --memory --redis-url nonsense", want: "redis_url: want redis://"},
		{args: "dev --memory --chaos 503=0.1", env: map[string]string{"OPENAI_API_KEY": "sk-hunter2"}, want: "a real one is configured"},
		{args: "dev --memory", env: map[string]string{"FERRY_MAX_BODY": "1"}, want: "api.max_body: 1"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr logtest.Buffer
			env := Env{Ctx: t.Context(), Stdout: &stdout, Stderr: &stderr, Getenv: func(name string) string { return tt.env[name] }}
			require.Equal(t, exitUsage, run(env, strings.Fields(tt.args)), stderr.String())
			require.Contains(t, stderr.String(), tt.want)
			require.NotContains(t, stderr.String(), "hunter2")
			require.Empty(t, stdout.String())
		})
	}
}

func TestATakenAddressIsAFailure(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range []string{"sim --addr 256.0.0.1:1", "dev --memory --addr 256.0.0.1:1", "dev --memory --addr 127.0.0.1:0 --admin-addr 256.0.0.1:1"} {
		var stdout, stderr logtest.Buffer
		env := Env{Ctx: t.Context(), Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }}
		require.Equal(t, exitFailure, run(env, strings.Fields(args)), args)
		require.Contains(t, stderr.String(), "256.0.0.1")
	}
}

// Dev has defaults of its own. Whatever the operator set is over them.
func TestDevTakesSettingsFromEverywhere(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := filepath.Join(dir, "some.yaml")
	require.NoError(t, os.WriteFile(file, []byte("api: {addr: file}\nlog: {level: warn}\ndashboard: {mode: off}\n"), 0o600))
	tests := []struct {
		name                     string
		cmd                      DevCmd
		env                      map[string]string
		addr, admin, level, mode string
	}{
		{"nothing", DevCmd{}, nil, "127.0.0.1:8080", "127.0.0.1:8081", "info", "full"},
		{"a file", DevCmd{Config: file}, nil, "file", "127.0.0.1:8081", "warn", "off"},
		{
			"the environment",
			DevCmd{Config: file},
			map[string]string{"FERRY_ADDR": "env", "FERRY_ADMIN_ADDR": "env", "FERRY_LOG_LEVEL": "error", "FERRY_DASHBOARD": "readonly"},
			"env", "env", "error", "readonly",
		},
		{"flags", DevCmd{Addr: "flag", AdminAddr: "flag", LogLevel: "debug"}, map[string]string{"FERRY_ADDR": "env"}, "flag", "flag", "debug", "full"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := tt.cmd.load(Env{Getenv: func(name string) string { return tt.env[name] }})
			require.NoError(t, err)
			require.Equal(t, []string{tt.addr, tt.admin, tt.level, tt.mode}, []string{cfg.API.Addr, cfg.Worker.AdminAddr, cfg.Log.Level, cfg.Dashboard.Mode})
		})
	}
}

func fetch(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(text)
}

// The first minute: start it, hand in a job, get the answer although the upstream fails at first.
func TestDevIsTheWholeSystem(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a whole system")
	}
	t.Chdir(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout, stderr logtest.Buffer
	code := make(chan int, 1)
	go func() {
		env := Env{Ctx: ctx, Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }}
		code <- run(env, strings.Fields("dev --memory --addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 --chaos 503*1"))
	}()
	form := regexp.MustCompile(`API +(http://127\.0\.0\.1:\d+)/v1/jobs`)
	require.Eventually(t, func() bool { return strings.Contains(stdout.String(), "Ctrl-C") }, 10*time.Second, 5*time.Millisecond)
	require.Contains(t, stdout.String(), "NOT DURABLE")
	require.Contains(t, stdout.String(), "faults: 503*1")
	base := form.FindStringSubmatch(stdout.String())[1]

	status, text := fetch(t, "POST", base+"/v1/jobs", `{"kind":"chat","request":{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}}`)
	require.Equal(t, 202, status, text)
	id := regexp.MustCompile(`job_[0-9a-f]{32}`).FindString(text)
	status, text = fetch(t, "GET", base+"/v1/jobs/"+id+"?wait=30s", "")
	require.Equal(t, 200, status)
	require.Contains(t, text, `"state":"succeeded"`)
	require.Contains(t, text, `"attempts":2`)
	for _, request := range []string{"retry", "cancel"} {
		status, text = fetch(t, "POST", base+"/v1/jobs/"+id+"/"+request, "")
		require.Equal(t, 409, status)
		require.Contains(t, text, `"code":"job_succeeded"`)
	}
	status, text = fetch(t, "GET", base+"/healthz", "")
	require.Equal(t, 200, status)
	require.Contains(t, text, `"durable":false`)
	status, _ = fetch(t, "GET", base+"/dashboard", "")
	require.Equal(t, 200, status)
	cancel()
	require.Equal(t, exitOK, <-code, stderr.String())
}

func TestSimAnswersUntilItIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout, stderr logtest.Buffer
	code := make(chan int, 1)
	go func() {
		env := Env{Ctx: ctx, Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }}
		code <- run(env, strings.Fields("sim --addr 127.0.0.1:0 --chaos 503=1"))
	}()
	require.Eventually(t, func() bool { return strings.HasSuffix(stderr.String(), "faults: 503=1\n") }, 10*time.Second, 5*time.Millisecond)
	base := regexp.MustCompile(`http://\S+`).FindString(stderr.String())
	status, _ := fetch(t, "GET", base+"/models", "")
	require.Equal(t, 503, status)
	cancel()
	require.Equal(t, exitOK, <-code)
	require.Empty(t, stdout.String())
}
