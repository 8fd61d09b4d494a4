package httpx

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Request is one call.
type Request struct {
	Method         string      // default POST
	URL            string      // absolute, http or https
	Header         http.Header // not changed; shared by all attempts
	Body           []byte      // sent again by each attempt: do not change it before Do returns
	IdempotencyKey string      // sent as Idempotency-Key with each attempt; empty: none
	Policy         *Policy     // nil: the client's; zero fields count as their defaults
	MaxAttempts    int         // tighter cap for this call; 0: the policy's

	// Stream, when set, receives the body of a 2xx response as it arrives, with the number of the attempt (from 1): a
	// higher number starts the answer over. chunk is valid during the call only. An error ends the call as Canceled.
	// The time Stream takes does not count as silence of the upstream. A request with Stream is never hedged.
	Stream func(attempt int, chunk []byte) error
}

// Response is a usable answer.
type Response struct {
	Status   int
	Header   http.Header
	Body     []byte    // complete, and decoded when net/http asked for gzip by itself
	Attempts []Attempt // in order of start; the one of class OK brought the answer
}

// parseURL accepts absolute http and https URLs. Its error shows no part of the URL, which may hold a key.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%w: the URL is not an absolute http or https URL", ErrBadRequest)
	}
	return u, nil
}

// checkHeader finds what net/http would refuse with an error that looks like a network failure. The usual culprit is an
// API key read from a file together with its line feed. The error names the header, never its value.
func checkHeader(method string, h http.Header) error {
	if !isToken(method) {
		return fmt.Errorf("%w: the method is malformed", ErrBadRequest)
	}
	for name, values := range h {
		if !isToken(name) {
			return fmt.Errorf("%w: a header name is malformed", ErrBadRequest)
		}
		for _, value := range values {
			if !isFieldValue(value) {
				return fmt.Errorf("%w: header %s has a control character", ErrBadRequest, name)
			}
		}
	}
	return nil
}

// isToken reports whether s is a token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		digit := '0' <= c && c <= '9'
		if !letter && !digit && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// isFieldValue reports whether s has no control character but tabs (RFC 9110 §5.5).
func isFieldValue(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f {
			return false
		}
	}
	return true
}
