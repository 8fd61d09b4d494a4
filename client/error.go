package client

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// APIError is the server's refusal of a request: the OpenAI error envelope and what the headers add.
// Switch on Status or Code, never on Message.
type APIError struct {
	Status     int           // HTTP status
	Code       string        // machine-readable reason, such as job_not_found; empty when a proxy answered
	Type       string        // family of the code, such as invalid_request_error
	Param      string        // the field of the request that is wrong, if one is
	Message    string        // for people: what is wrong and what to do
	RequestID  string        // X-Request-Id: finds the request in the server's log
	RetryAfter time.Duration // when the server expects to be able; 0 if it did not say

	final bool // the server says that another attempt is pointless
}

// Error tells status, code, message and request ID.
func (e *APIError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "client: %d", e.Status)
	if e.Code != "" {
		b.WriteString(" " + e.Code)
	}
	b.WriteString(": " + e.Message)
	if e.Param != "" {
		fmt.Fprintf(&b, " (param %s)", e.Param)
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.RequestID)
	}
	return b.String()
}

// newAPIError reads a reply other than 2xx. A body that is not the envelope, such as a proxy's page,
// is replaced by the status in words.
func newAPIError(resp *http.Response, body []byte) *APIError {
	var envelope struct {
		Error struct {
			Message, Type, Param, Code string
		}
	}
	_ = json.Unmarshal(body, &envelope) // fields that do decode are kept; Message has a default
	return &APIError{
		Status:     resp.StatusCode,
		Code:       envelope.Error.Code,
		Type:       envelope.Error.Type,
		Param:      envelope.Error.Param,
		Message:    cmp.Or(envelope.Error.Message, strings.ToLower(http.StatusText(resp.StatusCode)), "unknown status"),
		RequestID:  resp.Header.Get("X-Request-Id"),
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
		final:      resp.Header.Get("X-Should-Retry") == "false",
	}
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3: seconds or an HTTP date), seen at
// now. It is never negative; what cannot be read is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		if math.IsNaN(seconds) || seconds <= 0 {
			return 0
		}
		// A day is beyond any patience; without the bound the product could overflow.
		return time.Duration(math.Min(seconds, 24*60*60) * float64(time.Second))
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
