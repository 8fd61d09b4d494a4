package httpx_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// recorder notes every event as a line.
type recorder struct{ events []string }

func (r *recorder) hooks() httpx.Hooks {
	note := func(format string, args ...any) { r.events = append(r.events, fmt.Sprintf(format, args...)) }
	return httpx.Hooks{
		Attempt: func(_ context.Context, a httpx.Attempt) {
			note("attempt %s %s, then %s (%s)", a.Class, a.Reason, a.Wait, a.WaitReason)
		},
		Wait:   func(_ context.Context, w httpx.Wait) { note("wait after %d: %s (%s)", w.Attempt, w.Duration, w.Reason) },
		GiveUp: func(_ context.Context, e *httpx.Error) { note("give up %s (%s)", e.Reason, e.Stopped) },
	}
}

func TestHooks_fire_once_per_event(t *testing.T) {
	tests := []struct {
		name  string
		cfg   httpx.Config
		steps []step
		want  []string
	}{
		{
			name: "an answer at once", steps: []step{{status: 200}},
			want: []string{"attempt ok ok, then 0s ()"},
		},
		{
			name: "an answer after two failures", steps: []step{{status: 500}, {status: 429, header: "Retry-After: 9"}, {status: 200}},
			want: []string{
				"attempt transient http_500, then 1s (backoff)", "wait after 1: 1s (backoff)",
				"attempt throttled http_429, then 9s (retry_after)", "wait after 2: 9s (retry_after)",
				"attempt ok ok, then 0s ()",
			},
		},
		{
			name: "a permanent failure", steps: []step{{status: 404}},
			want: []string{"attempt permanent http_404, then 0s ()", "give up http_404 (final)"},
		},
		{
			name: "spent attempts", steps: []step{{status: 500}},
			want: []string{
				"attempt transient http_500, then 1s (backoff)", "wait after 1: 1s (backoff)",
				"attempt transient http_500, then 2s (backoff)", "wait after 2: 2s (backoff)",
				"attempt transient http_500, then 4s (backoff)", "give up http_500 (attempts_spent)",
			},
		},
		{
			name: "a refusal", cfg: httpx.Config{Breaker: openBreaker{time.Second}}, steps: []step{{status: 200}},
			want: []string{"give up breaker_open (refused)"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r recorder
				tt.cfg.Policy, tt.cfg.Hooks = exact(3), r.hooks()
				_, _ = newScript(tt.steps...).client(t, tt.cfg).Do(t.Context(), post)
				if !slices.Equal(r.events, tt.want) {
					t.Errorf("events %q\nwant   %q", r.events, tt.want)
				}
			})
		})
	}
}
