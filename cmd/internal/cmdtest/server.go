// Package cmdtest tests what the server programs have in common: how they start, fail and end.
package cmdtest

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/cmd/internal/cmdline"
	"github.com/ferry-queue/ferry/internal/logtest"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// Server is a server program.
type Server struct {
	Name     string
	AddrFlag string // of its address, "--addr"
	AddrKey  string // the same in a file, "api.addr"
	Run      func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int
}

// Mistake is an invocation that is wrong. It is found before the program reaches Redis.
type Mistake struct {
	Name string
	Args []string
	Env  map[string]string
	Want string // in what is said of it
}

// Getenv is an environment.
func Getenv(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// Test runs the tests that every server passes, and for more mistakes than those all servers know.
func (s Server) Test(t *testing.T, more ...Mistake) {
	t.Run("mistakes exit with two", func(t *testing.T) { s.testMistakes(t, more) })
	t.Run("version and help go to stdout", s.testVersionAndHelp)
	t.Run("a taken address is a failure", s.testTakenAddress)
	t.Run("it runs until a signal", s.testSignal)
	t.Run("a redis that may drop jobs is refused", s.testEviction)
}

func (s Server) testMistakes(t *testing.T, more []Mistake) {
	t.Chdir(t.TempDir())
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("log:\n  lvl: info\n"), 0o600))
	upstream := map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
	mistakes := append([]Mistake{
		{"an unknown flag", []string{"--bogus"}, upstream, s.Name + ": unknown flag --bogus"},
		{"an argument", []string{"start"}, upstream, s.Name + ": unexpected argument start"},
		{"no upstream", nil, nil, "no upstream: set OPENAI_API_KEY"},
		{"no such file", []string{"--config", "/nowhere.yaml"}, upstream, "/nowhere.yaml: no such file"},
		{"a mistake in the file", []string{"--config", bad}, upstream, "2 |   lvl: info"},
		{"a bad Redis", []string{"--redis-url", "http://:hunter2@h"}, upstream, "redis_url: unknown scheme"},
		{"a bad variable", nil, map[string]string{"FERRY_DRAIN": "soon", "OPENAI_API_KEY": "sk-hunter2"}, "FERRY_DRAIN: "},
	}, more...)
	for _, m := range mistakes {
		t.Run(m.Name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, cmdline.ExitUsage, s.Run(t.Context(), m.Args, Getenv(m.Env), &stdout, &stderr))
			require.Contains(t, stderr.String(), m.Want)
			require.NotContains(t, stderr.String(), "hunter2")
			require.Empty(t, stdout.String())
		})
	}
}

func (s Server) testVersionAndHelp(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"--help"}} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, cmdline.ExitOK, s.Run(t.Context(), args, Getenv(nil), &stdout, &stderr))
		require.NotEmpty(t, strings.TrimSpace(stdout.String()))
		require.Empty(t, stderr.String())
	}
}

func (s Server) testTakenAddress(t *testing.T) {
	t.Chdir(t.TempDir())
	var stdout, stderr bytes.Buffer
	code := s.Run(t.Context(), []string{s.AddrFlag, "256.0.0.1:1", "--redis-url", "redis://127.0.0.1:1"},
		Getenv(map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}), &stdout, &stderr)
	require.Equal(t, cmdline.ExitFailure, code)
	require.Contains(t, stderr.String(), s.AddrKey+": ")
	require.Contains(t, stderr.String(), "redis is away", "which is no reason not to start")
}

// A process starts, says where it listens, and ends on a signal with exit code 0.
func (s Server) testSignal(t *testing.T) {
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
		code <- s.Run(ctx, []string{s.AddrFlag, "127.0.0.1:0"}, Getenv(map[string]string{
			"FERRY_REDIS_URL": server.URL(), "OPENAI_API_KEY": "sk-hunter2",
		}), &stdout, &stderr)
	}()
	listens := regexp.MustCompile(`"(?:addr|admin)":"127\.0\.0\.1:[1-9]`)
	require.Eventually(t, func() bool { return listens.MatchString(stderr.String()) }, 10*time.Second, 5*time.Millisecond)
	cancel()
	require.Equal(t, cmdline.ExitOK, <-code, stderr.String())
	require.NotContains(t, stderr.String(), "hunter2")
	require.Empty(t, stdout.String())
}

func (s Server) testEviction(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a redis-server")
	}
	t.Chdir(t.TempDir())
	server := redistest.Start(t)
	setPolicy(t, server.URL(), "allkeys-lru")
	var stdout, stderr bytes.Buffer
	code := s.Run(t.Context(), []string{s.AddrFlag, "127.0.0.1:0", "--redis-url", server.URL()},
		Getenv(map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}), &stdout, &stderr)
	require.Equal(t, cmdline.ExitFailure, code)
	require.Contains(t, stderr.String(), "maxmemory-policy is allkeys-lru")
}

func setPolicy(t *testing.T, url, policy string) {
	t.Helper()
	rdb, err := redisclient.Open(url)
	require.NoError(t, err)
	defer rdb.Close()
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
}
