// Package openai knows what an OpenAI-compatible upstream says and wants to hear: its endpoints, the
// few request fields Ferry must understand, its error envelope, and what each of its answers means for
// the next attempt.
//
// The idea: a request is carried, not modelled. Ferry looks at the fields it needs to route and
// validate, and sends the caller's own bytes, so that a parameter invented tomorrow passes through.
package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind is what a job asks of its upstream.
type Kind string

// The kinds of jobs.
const (
	Chat       Kind = "chat"       // POST /chat/completions
	Generate   Kind = "generate"   // POST /completions
	Embeddings Kind = "embeddings" // POST /embeddings
)

// Kinds returns every kind, in the order of the documentation.
func Kinds() []Kind { return []Kind{Chat, Generate, Embeddings} }

// Valid reports whether k is one of [Kinds].
func (k Kind) Valid() bool { return slices.Contains(Kinds(), k) }

// Path is the endpoint below an upstream's base URL.
func (k Kind) Path() string {
	switch k {
	case Chat:
		return "/chat/completions"
	case Generate:
		return "/completions"
	case Embeddings:
		return "/embeddings"
	default:
		return ""
	}
}

// FieldError says which field of a request is wrong and how to mend it.
type FieldError struct {
	Param   string // dotted path of the field, as the caller wrote it
	Code    string // machine-readable, as OpenAI's: "missing_required_parameter", "invalid_type", ...
	Message string // one sentence that names the field and the fix
}

// Error is the message.
func (e *FieldError) Error() string { return e.Message }

func fieldError(param, code, format string, args ...any) *FieldError {
	return &FieldError{Param: param, Code: code, Message: param + ": " + fmt.Sprintf(format, args...)}
}

// request is a body by its fields, of which Ferry reads a few. It is no struct, because encoding/json takes
// "Stream" for "stream" and an upstream does not.
type request map[string]json.RawMessage

// Check looks at the fields of a request body that Ferry or every upstream needs, and returns the
// model. prefix is put before field names in errors ("request." for a job, "" for a drop-in call). The
// error is a *[FieldError].
func Check(kind Kind, body []byte, prefix string) (model string, err error) {
	name := strings.TrimSuffix(prefix, ".")
	if name == "" {
		name = "body"
	}
	if len(body) == 0 {
		return "", fieldError(name, "missing_required_parameter", "is missing; give the JSON body of a %s request", kind.Path())
	}
	var r request
	if err := json.Unmarshal(body, &r); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return "", fieldError(name, "invalid_type", "must be a JSON object")
		}
		return "", fieldError(name, "invalid_json", "is not valid JSON: %v", err)
	}
	if r == nil {
		return "", fieldError(name, "missing_required_parameter", "is null; give the JSON body of a %s request", kind.Path())
	}
	if absent(r["model"]) {
		return "", fieldError(prefix+"model", "missing_required_parameter", `is missing; name a model, for example "gpt-4o-mini"`)
	}
	if json.Unmarshal(r["model"], &model) != nil || model == "" {
		return "", fieldError(prefix+"model", "invalid_type", "must be a non-empty string")
	}
	if err := r.checkInput(kind, prefix); err != nil {
		return "", err
	}
	return model, nil
}

func (r request) checkInput(kind Kind, prefix string) error {
	switch kind {
	case Chat:
		if absent(r["messages"]) {
			return fieldError(prefix+"messages", "missing_required_parameter", `is missing; give at least one, for example [{"role":"user","content":"Hello"}]`)
		}
		var messages []json.RawMessage
		if json.Unmarshal(r["messages"], &messages) != nil {
			return fieldError(prefix+"messages", "invalid_type", "must be an array of message objects")
		}
		if len(messages) == 0 {
			return fieldError(prefix+"messages", "empty_array", "is empty; give at least one message")
		}
		for i, m := range messages {
			if !isObject(m) {
				return fieldError(fmt.Sprintf("%smessages[%d]", prefix, i), "invalid_type", `must be an object such as {"role":"user","content":"Hello"}`)
			}
		}
	case Generate:
		return needTextOrArray(prefix+"prompt", r["prompt"])
	case Embeddings:
		return needTextOrArray(prefix+"input", r["input"])
	}
	return nil
}

// Streams reports whether a request body asks for a stream of events.
func Streams(body []byte) bool {
	var r request
	return json.Unmarshal(body, &r) == nil && string(r["stream"]) == "true"
}

func needTextOrArray(param string, raw json.RawMessage) error {
	if absent(raw) {
		return fieldError(param, "missing_required_parameter", "is missing; give a string or an array")
	}
	if raw[0] != '"' && raw[0] != '[' {
		return fieldError(param, "invalid_type", "must be a string or an array")
	}
	var list []json.RawMessage
	if raw[0] == '[' && (json.Unmarshal(raw, &list) != nil || len(list) == 0) {
		return fieldError(param, "empty_array", "is empty; give at least one element")
	}
	return nil
}

func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func isObject(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '{' }
