package redisclient_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/redisclient"
)

// FuzzParse looks for an address that breaks the reader, is accepted without a host, or is refused or shown with its
// password.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"redis://127.0.0.1:6379/0", "rediss://ferry:hunter2@h:1/1", "redis://a,b,[::1]:7?pool_size=3", "redis-sentinel://:hunter2@a,b/0?master=m&sentinel_password=hunter2",
		"redis://u:12/hunter2@h", "redis://u:hunter2#@h", "redis://,,", "://", "redis://h:1?hunter2@x", "redis://h/0?pool_size=hunter2@x", "redis://hunter2@", " redis:// : : ",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		opts, err := redisclient.Parse(url)
		shown := redisclient.Display(url)
		if err != nil {
			require.Equal(t, "invalid", shown)
			shown = err.Error()
		} else {
			require.NotEmpty(t, opts.Addrs)
			require.NotContains(t, opts.Addrs, "")
			require.Positive(t, opts.ReadTimeout)
		}
		// Everything between the scheme and the last @ is, or may be meant as, a user and a password.
		_, rest, _ := strings.Cut(url, "://")
		if userinfo := rest[:max(0, strings.LastIndex(rest, "@"))]; strings.Contains(userinfo, "hunter2") && strings.Count(url, "hunter2") == 1 {
			require.NotContains(t, shown, "hunter2", url)
		}
	})
}
