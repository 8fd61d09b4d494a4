package openai

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Envelope is the body of an error reply, OpenAI's own form:
// https://platform.openai.com/docs/guides/error-codes/api-errors
type Envelope struct {
	Error ErrorBody `json:"error"`
}

// ErrorBody is what an [Envelope] holds.
type ErrorBody struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

// maxMessage bounds how much of an upstream's message is kept with a job.
const maxMessage = 2000

// ParseError reads an upstream's error body. It accepts OpenAI's envelope, with a number for a code as
// some compatible servers write it, and {"error": "text"}, {"message": "text"} and {"detail": "text"}.
// Anything else gives ok == false. The texts are redacted and cut.
func ParseError(body []byte) (e ErrorBody, ok bool) {
	var outer struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	if json.Unmarshal(body, &outer) != nil {
		return ErrorBody{}, false
	}
	var inner struct {
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Param   json.RawMessage `json:"param"`
		Code    json.RawMessage `json:"code"`
	}
	switch {
	case isObject(outer.Error) && json.Unmarshal(outer.Error, &inner) == nil:
		e = ErrorBody{Message: inner.Message, Type: inner.Type, Param: scalar(inner.Param), Code: scalar(inner.Code)}
	case len(outer.Error) > 0 && outer.Error[0] == '"':
		_ = json.Unmarshal(outer.Error, &e.Message) // a JSON string by its first byte
	case outer.Message != "":
		e.Message = outer.Message
	case len(outer.Detail) > 0 && outer.Detail[0] == '"':
		_ = json.Unmarshal(outer.Detail, &e.Message) // a JSON string by its first byte
	}
	if e.Message == "" && e.Code == nil && e.Type == "" {
		return ErrorBody{}, false
	}
	e.Message = cut(Redact(e.Message), maxMessage)
	e.Type = cut(Redact(e.Type), 100)
	return e, true
}

// scalar returns a JSON string's or number's text, redacted, or nil for anything else.
func scalar(raw json.RawMessage) *string {
	if absent(raw) || isObject(raw) || raw[0] == '[' {
		return nil
	}
	text := string(raw)
	if raw[0] == '"' && json.Unmarshal(raw, &text) != nil {
		return nil
	}
	text = cut(Redact(text), 200)
	return &text
}

// Redact blanks what looks like a credential in a text from outside: bearer tokens, keys of the form
// sk-..., and key=value pairs of the usual names. Upstreams repeat the key they were sent in their
// error messages, and those are kept in Redis.
func Redact(text string) string {
	if !strings.ContainsAny(text, "-_=: ") {
		return text
	}
	text = bearerToken.ReplaceAllString(text, "Bearer [redacted]")
	text = prefixedKey.ReplaceAllString(text, "[redacted]")
	return namedSecret.ReplaceAllString(text, "$1$2[redacted]")
}

// What Redact looks for. Upstreams mask keys with asterisks, so those count as part of one. A word after
// "key-" is a secret only with a digit: "key-value-store" is none.
var (
	bearerToken = regexp.MustCompile(`(?i)\bbearer\s+[A-Za-z0-9._~+/=*-]{6,}`)
	prefixedKey = regexp.MustCompile(`\b(?:sk|pk|rk|gsk|xai)[-_][A-Za-z0-9_*.-]{6,}|\bkey[-_][A-Za-z_.-]*[0-9*][A-Za-z0-9_*.-]{4,}`)
	namedSecret = regexp.MustCompile(`(?i)((?:\b|_)(?:api[-_ ]?key|token|secret|password))(["']?\s*[=:]\s*["']?)[^\s"',;&]{6,}`)
)

// cut shortens s to at most n bytes at a character's boundary.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
