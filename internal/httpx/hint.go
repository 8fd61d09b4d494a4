package httpx

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// retryHint returns the wait that a response header asks for, or 0. The most exact form wins:
// retry-after-ms (milliseconds, OpenAI and Azure), then Retry-After (RFC 9110 §10.2.3: seconds or an HTTP date;
// fractions are accepted since vendors send them).
func retryHint(h http.Header) time.Duration {
	if d, ok := parseSeconds(h.Get("Retry-After-Ms"), time.Millisecond); ok {
		return d
	}
	return parseRetryAfter(h.Get("Retry-After"), h.Get("Date"))
}

// parseRetryAfter reads a Retry-After value. A date counts from the response's own Date, so that a clock
// that differs from the upstream's does not turn one second into an hour. Anything unreadable or past is 0.
func parseRetryAfter(value, date string) time.Duration {
	if value == "" {
		return 0
	}
	if d, ok := parseSeconds(value, time.Second); ok {
		return d
	}
	at, err := http.ParseTime(strings.TrimSpace(value))
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(date)
	if err != nil {
		now = time.Now()
	}
	return max(at.Sub(now), 0)
}

// rateReset returns when an exhausted rate limit recovers by the x-ratelimit-reset-{requests,tokens,...} headers:
// the longest reset among the dimensions with nothing remaining, else the longest of all.
func rateReset(h http.Header) time.Duration {
	const reset, remaining = "X-Ratelimit-Reset", "X-Ratelimit-Remaining"
	var longest, exhausted time.Duration
	for name, values := range h {
		dimension, ok := strings.CutPrefix(name, reset)
		if !ok || len(values) == 0 {
			continue
		}
		d := parseReset(values[0])
		longest = max(longest, d)
		if left, err := strconv.ParseFloat(h.Get(remaining+dimension), 64); err == nil && left <= 0 {
			exhausted = max(exhausted, d)
		}
	}
	if exhausted > 0 {
		return exhausted
	}
	return longest
}

// parseReset reads a reset value: a Go-like duration ("6m0s", "120ms", also with leading days, "1d2h"),
// plain seconds, or an instant in Unix seconds or milliseconds. Anything unreadable or past is 0.
func parseReset(value string) time.Duration {
	value = strings.TrimSpace(value)
	if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 1e9 {
		at := time.Unix(n, 0)
		if n > 1e12 {
			at = time.UnixMilli(n)
		}
		return max(time.Until(at), 0)
	}
	if d, ok := parseSeconds(value, time.Second); ok {
		return d
	}
	var days time.Duration
	if head, tail, ok := strings.Cut(value, "d"); ok {
		d, ok := parseSeconds(head, 24*time.Hour)
		if !ok {
			return 0
		}
		if days, value = d, tail; tail == "" {
			return days
		}
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return 0
	}
	if days > math.MaxInt64-d {
		return math.MaxInt64
	}
	return days + d
}

// parseSeconds reads a plain decimal number of units. It takes digits and one dot only: strconv alone would accept
// "NaN", "Inf", hexadecimal and exponents. A number too large for a Duration is the largest Duration.
func parseSeconds(value string, unit time.Duration) (time.Duration, bool) {
	value = strings.TrimSpace(value)
	if value == "" || strings.Trim(value, "0123456789.") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(value, 64)
	if err != nil && !math.IsInf(n, 1) {
		return 0, false
	}
	if n *= float64(unit); n >= math.MaxInt64 {
		return math.MaxInt64, true
	}
	return time.Duration(math.Round(n)), true
}
