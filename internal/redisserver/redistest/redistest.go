// Package redistest gives a test its own redis-server, which ends with the test.
package redistest

import (
	"context"
	"testing"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

// Start runs a redis-server in a temporary directory, with an append-only file
// so that [redisserver.Server.Restart] and Kill keep the data, and stops it when
// the test ends. Each option may change the configuration. A machine without
// redis-server fails the test: it never skips.
func Start(tb testing.TB, opts ...func(*redisserver.Config)) *redisserver.Server {
	tb.Helper()
	// No fsync: only a power failure could lose data, and tests have none.
	cfg := redisserver.Config{Dir: tb.TempDir(), AppendOnly: true, AppendFsync: "no"}
	for _, opt := range opts {
		opt(&cfg)
	}
	s, err := redisserver.Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// The test's own context has ended by now.
		if err := s.Stop(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return s
}
