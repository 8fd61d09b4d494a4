package client

import (
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		value string
		want  time.Duration
	}{
		{"", 0},
		{"2", 2 * time.Second},
		{" 0.5 ", 500 * time.Millisecond},
		{"-1", 0},
		{"NaN", 0},
		{"Inf", 24 * time.Hour},
		{"1e300", 24 * time.Hour},
		{"Mon, 23 Nov 2026 12:00:07 GMT", 7 * time.Second},
		{"Mon, 23 Nov 2026 11:00:00 GMT", 0},
		{"soon", 0},
	}
	for _, tt := range tests {
		if got := retryAfter(tt.value, now); got != tt.want {
			t.Errorf("retryAfter(%q) = %s, want %s", tt.value, got, tt.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{"3", "0.1", "-7", "1e99", "Mon, 23 Nov 2026 12:00:07 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(seed)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		if got := retryAfter(value, now); got < 0 {
			t.Errorf("retryAfter(%q) = %s, want 0 or more", value, got)
		}
	})
}
