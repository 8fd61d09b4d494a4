package openai

import (
	"encoding/json"
	"net/http"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// Classify is [httpx.Classify] with what only an OpenAI-compatible upstream means by its answers:
//
//   - 429 with code insufficient_quota will not pass by waiting: permanent
//     (https://platform.openai.com/docs/guides/error-codes/api-errors).
//   - 200 with a body that is not JSON is no answer: transient, and it may have been billed.
func Classify(o httpx.Outcome) httpx.Verdict {
	v := httpx.Classify(o)
	if o.Err != nil {
		return v
	}
	switch {
	case o.Status == http.StatusTooManyRequests && quotaSpent(o.Body):
		v.Class, v.Reason, v.Wait = httpx.Permanent, "insufficient_quota", 0
	case v.Class == httpx.OK && !json.Valid(o.Body):
		v.Class, v.Reason, v.OutcomeUnknown, v.Unhealthy = httpx.Transient, "invalid_json", true, true
	}
	return v
}

func quotaSpent(body []byte) bool {
	e, ok := ParseError(body)
	if !ok {
		return false
	}
	const spent = "insufficient_quota"
	return e.Type == spent || (e.Code != nil && *e.Code == spent)
}
