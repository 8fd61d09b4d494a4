package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/cmd/internal/cmdline"
	"github.com/ferry-queue/ferry/cmd/internal/cmdtest"
)

func TestServer(t *testing.T) {
	cmdtest.Server{Name: "api", AddrFlag: "--addr", AddrKey: "api.addr", Run: run}.Test(t,
		cmdtest.Mistake{
			Name: "a body limit of nothing", Env: map[string]string{"FERRY_MAX_BODY": "1", "OPENAI_BASE_URL": "http://h"},
			Want: "api.max_body: 1 is not in",
		})
}

// The API calls no upstream: a key that is missing, or that it may not see, is none of its business.
func TestTheAPIStartsWithoutKeys(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("ferry.yaml", []byte("upstreams: [{name: a, base_url: http://a, api_key_env: NOT_SET}]"), 0o600))
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--addr", "256.0.0.1:1", "--redis-url", "redis://127.0.0.1:1"}, cmdtest.Getenv(nil), &stdout, &stderr)
	require.Equal(t, cmdline.ExitFailure, code, "the address is what stops it")
	require.NotContains(t, stderr.String(), "NOT_SET")
}
