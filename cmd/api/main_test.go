package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/logtest"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

func getenv(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// No line here reaches Redis: the mistake is found before.
func TestMistakesExitWithTwo(t *testing.T) {
	t.Chdir(t.TempDir())
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("log:\n  lvl: info\n"), 0o600))
	upstream := map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"an unknown flag", []string{"--bogus"}, upstream, "api: unknown flag --bogus"},
		{"an argument", []string{"start"}, upstream, "api: unexpected argument start"},
		{"no upstream", nil, nil, "no upstream: set OPENAI_API_KEY"},
		{"no such file", []string{"--config", "/nowhere.yaml"}, upstream, "/nowhere.yaml: no such file"},
		{"a mistake in the file", []string{"--config", bad}, upstream, "2 |   lvl: info"},
		{"a bad Redis", []string{"--redis-url", "http://:hunter2@h"}, upstream, "redis_url: unknown scheme"},
		{"a bad variable", nil, map[string]string{"FERRY_DRAIN": "soon", "OPENAI_API_KEY": "sk-hunter2"}, "FERRY_DRAIN: "},
		{"a body limit of nothing", nil, map[string]string{"FERRY_MAX_BODY": "1", "OPENAI_BASE_URL": "http://h"}, "api.max_body: 1 is not in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, exitUsage, run(t.Context(), tt.args, getenv(tt.env), &stdout, &stderr))
			require.Contains(t, stderr.String(), tt.want)
			require.NotContains(t, stderr.String(), "hunter2")
			require.Empty(t, stdout.String())
		})
	}
}

func TestVersionAndHelpGoToStdout(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"--help"}} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, exitOK, run(t.Context(), args, getenv(nil), &stdout, &stderr))
		require.NotEmpty(t, strings.TrimSpace(stdout.String()))
		require.Empty(t, stderr.String())
	}
}

func TestATakenAddressIsAFailure(t *testing.T) {
	t.Chdir(t.TempDir())
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--addr", "256.0.0.1:1", "--redis-url", "redis://127.0.0.1:1"},
		getenv(map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}), &stdout, &stderr)
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr.String(), "api.addr: ")
	require.Contains(t, stderr.String(), "redis is away", "which is no reason not to start")
}

// A process starts, says where it listens, and ends on a signal with exit code 0.
func TestRunUntilASignal(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	t.Chdir(t.TempDir())
	server := redistest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout, stderr logtest.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--addr", "127.0.0.1:0"}, getenv(map[string]string{
			"FERRY_REDIS_URL": server.URL(), "OPENAI_API_KEY": "sk-hunter2",
		}), &stdout, &stderr)
	}()
	listens := regexp.MustCompile(`"(?:addr|admin)":"127\.0\.0\.1:[1-9]`)
	require.Eventually(t, func() bool { return listens.MatchString(stderr.String()) }, 10*time.Second, 5*time.Millisecond)
	cancel()
	require.Equal(t, exitOK, <-code, stderr.String())
	require.NotContains(t, stderr.String(), "hunter2")
	require.Empty(t, stdout.String())
}

// Redis that may drop jobs is refused.
func TestARedisThatEvictsIsRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	t.Chdir(t.TempDir())
	server := redistest.Start(t)
	setPolicy(t, server.URL(), "allkeys-lru")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--addr", "127.0.0.1:0", "--redis-url", server.URL()},
		getenv(map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}), &stdout, &stderr)
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr.String(), "maxmemory-policy is allkeys-lru")
}

func setPolicy(t *testing.T, url, policy string) {
	t.Helper()
	rdb, err := redisclient.Open(url)
	require.NoError(t, err)
	defer rdb.Close()
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
}

// The API calls no upstream: a key that is missing, or that it may not see, is none of its business.
func TestTheAPIStartsWithoutKeys(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("ferry.yaml", []byte("upstreams: [{name: a, base_url: http://a, api_key_env: NOT_SET}]"), 0o600))
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--addr", "256.0.0.1:1", "--redis-url", "redis://127.0.0.1:1"}, getenv(nil), &stdout, &stderr)
	require.Equal(t, exitFailure, code, "the address is what stops it")
	require.NotContains(t, stderr.String(), "NOT_SET")
}
