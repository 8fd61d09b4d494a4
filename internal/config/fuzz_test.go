package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/config"
)

// FuzzFile looks for a file that breaks the reader, and for a mistake that is reported with a secret in it.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "api: {addr: x}", "redis_url: redis://u:hunter2hunter2@h:1/x\n", "upstreams: [{name: a, base_url: http://a/v1, api_key_env: K}]",
		"encryption: {keys: [{id: k1, key_env: E}, {id: k1, key_env: K}]}", "jobs: {backoff: {jitter: full, base: 1h}}", "a: &a [*a]", "? {}: -",
		"log: !!binary aGVsbG8=\n---\nlog:\n", "upstreams:\n- name: a\n  policies: {chat: {total: 1s, hedge: {on: true}}}\n  breaker: {probes: 1e9}\n",
	} {
		f.Add(seed)
	}
	env := vars{"K": "hunter2hunter2", "E": sealKey('h'), "FERRY_DASHBOARD_KEY": "hunter2hunter2"}
	name := filepath.Join(f.TempDir(), "ferry.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		cfg, err := config.Load(config.Source{File: name, Getenv: env.getenv})
		if err == nil {
			require.NoError(t, cfg.Validate())
			return
		}
		require.NotEmpty(t, err.Error())
		if !strings.Contains(text, "hunter2hunter2") { // else it may stand where nobody looks for a secret
			require.NotContains(t, err.Error(), "hunter2hunter2")
		}
		require.NotContains(t, err.Error(), env["E"])
	})
}
