package httpx_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// The clock of a synctest bubble starts here.
const bubbleStart = "Sat, 01 Jan 2000 00:00:00 GMT"

func TestClassify_reads_the_upstream_s_wish(t *testing.T) {
	tests := []struct {
		name   string
		header string
		want   time.Duration
	}{
		{"nothing", "", 0},
		{"milliseconds", "retry-after-ms: 1500", 1500 * time.Millisecond},
		{"fractions of milliseconds", "retry-after-ms: 0.5", 500 * time.Microsecond},
		{"seconds", "Retry-After: 7", 7 * time.Second},
		{"fractions of seconds", "Retry-After: 0.25", 250 * time.Millisecond},
		{"blanks", "Retry-After:   7  ", 7 * time.Second},
		{"a date", "Retry-After: Sat, 01 Jan 2000 00:01:00 GMT", time.Minute},
		{"a date in RFC 850 form", "Retry-After: Saturday, 01-Jan-00 00:01:00 GMT", time.Minute},
		{"a date in asctime form", "Retry-After: Sat Jan  1 00:01:00 2000", time.Minute},
		{"a date that is past", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT", 0},
		{"a date counts from the response's own", "Retry-After: Sat, 01 Jan 2000 05:01:00 GMT\nDate: Sat, 01 Jan 2000 05:00:00 GMT", time.Minute},
		{"milliseconds win", "retry-after-ms: 10\nRetry-After: 7", 10 * time.Millisecond},
		{"unreadable milliseconds do not", "retry-after-ms: x\nRetry-After: 7", 7 * time.Second},
		{"zero", "Retry-After: 0", 0},
		{"negative", "Retry-After: -1", 0},
		{"NaN", "Retry-After: NaN", 0},
		{"infinite", "Retry-After: Inf", 0},
		{"hexadecimal", "Retry-After: 0x10", 0},
		{"exponent", "Retry-After: 1e3", 0},
		{"too large for a duration", "Retry-After: 99999999999999999999", 1<<63 - 1},
		{"too large for a float", "Retry-After: 1" + strings.Repeat("0", 400), 1<<63 - 1},
		{"two dots", "Retry-After: 1.2.3", 0},
		{"a dot", "Retry-After: .", 0},

		{"a reset", "x-ratelimit-reset-requests: 6m0s", 6 * time.Minute},
		{"a reset in milliseconds", "x-ratelimit-reset-tokens: 120ms", 120 * time.Millisecond},
		{"a reset in seconds", "x-ratelimit-reset-tokens: 59.7", 59700 * time.Millisecond},
		{"a reset with days", "x-ratelimit-reset-requests: 1d2h", 26 * time.Hour},
		{"a reset of days only", "x-ratelimit-reset-requests: 2d", 48 * time.Hour},
		{"a reset in Unix seconds", "x-ratelimit-reset: 1763900000", 1763900000*time.Second - 946684800*time.Second},
		{"a reset in Unix milliseconds", "x-ratelimit-reset: 1763900000000", 1763900000*time.Second - 946684800*time.Second},
		{"a negative reset", "x-ratelimit-reset-tokens: -5s", 0},
		{"an unreadable reset", "x-ratelimit-reset-tokens: soon", 0},
		{"the exhausted dimension decides", "x-ratelimit-remaining-requests: 10\nx-ratelimit-reset-requests: 8m\nx-ratelimit-remaining-tokens: 0\nx-ratelimit-reset-tokens: 2s", 2 * time.Second},
		{"the longest of two exhausted", "x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: 8s\nx-ratelimit-remaining-tokens: 0\nx-ratelimit-reset-tokens: 2s", 8 * time.Second},
		{"the longest when none is exhausted", "x-ratelimit-remaining-requests: 5\nx-ratelimit-reset-requests: 8s\nx-ratelimit-remaining-tokens: 6\nx-ratelimit-reset-tokens: 2s", 8 * time.Second},
		{"Retry-After beats a reset", "Retry-After: 1\nx-ratelimit-reset-tokens: 2s", time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := httpx.Classify(httpx.Outcome{Status: 429, Header: parseHeader(tt.header)})
				if v.Class != httpx.Throttled || v.Wait != tt.want {
					t.Errorf("%q: got %s wait %s, want throttled wait %s", tt.header, v.Class, v.Wait, tt.want)
				}
			})
		})
	}
}

func FuzzClassify_hints(f *testing.F) {
	for _, seed := range []string{
		"", "1", "-1", "0.5", "NaN", "Inf", "1e309", "0x1p5", "99999999999999999999", "6m0s", "1d2h", "120ms", "-5s",
		"1763900000", "1763900000000", "9223372036854775807", "106751d23h47m16.854775807s", "106751d23h47m17s", bubbleStart, "\u0661",
	} {
		f.Add(seed, seed, 429)
	}
	f.Fuzz(func(t *testing.T, hint, reset string, status int) {
		h := http.Header{"Retry-After": {hint}, "Retry-After-Ms": {reset}, "Date": {reset}}
		for _, h := range []http.Header{h, {"Retry-After": {hint}, "Date": {reset}}, {"X-Ratelimit-Reset-Tokens": {reset}, "X-Ratelimit-Remaining-Tokens": {hint}}} {
			v := httpx.Classify(httpx.Outcome{Status: status, Header: h})
			if v.Wait < 0 {
				t.Errorf("%q: wait %s is negative", h, v.Wait)
			}
			if v.Class == httpx.Unclassified || v.Reason == "" {
				t.Errorf("status %d got no verdict: %+v", status, v)
			}
			if v.Wait > 0 && !v.Class.Retryable() {
				t.Errorf("status %d is %s and has a wait", status, v.Class)
			}
		}
	})
}
