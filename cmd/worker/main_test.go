package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/cmd/internal/cmdtest"
)

func TestServer(t *testing.T) {
	cmdtest.Server{Name: "worker", AddrFlag: "--admin-addr", AddrKey: "worker.admin_addr", Run: run}.Test(t,
		cmdtest.Mistake{
			Name: "a missing key", Args: []string{"--config", write(t, "upstreams: [{name: a, base_url: http://a, api_key_env: NOT_SET}]")},
			Want: "upstreams[0].api_key_env: the variable NOT_SET is not set",
		},
		cmdtest.Mistake{
			Name: "a bad breaker", Env: map[string]string{"FERRY_CONFIG": write(t, "upstreams: [{name: a, base_url: http://a, breaker: {failure_ratio: 2}}]")},
			Want: "upstreams[0].breaker.failure_ratio: 2",
		})
}

// write makes a file and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ferry.yaml")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}
