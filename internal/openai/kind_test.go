package openai_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/openai"
)

func TestEveryKindHasAPath(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range openai.Kinds() {
		require.True(t, kind.Valid(), kind)
		require.Regexp(t, `^/[a-z/]+$`, kind.Path())
		require.False(t, seen[kind.Path()], "%s shares its path", kind)
		seen[kind.Path()] = true
	}
	require.False(t, openai.Kind("poem").Valid())
	require.Empty(t, openai.Kind("poem").Path())
}

// Each message names the field as the caller wrote it, and says what to do.
func TestCheckNamesFieldAndFix(t *testing.T) {
	const missing, wrongType, empty = "missing_required_parameter", "invalid_type", "empty_array"
	tests := []struct {
		name  string
		kind  openai.Kind
		body  string
		param string
		code  string
		fix   string
	}{
		{"no body", openai.Chat, "", "request", missing, "give the JSON body"},
		{"null", openai.Chat, " null ", "request", missing, "give the JSON body"},
		{"cut JSON", openai.Chat, `{"model"`, "request", "invalid_json", "unexpected end"},
		{"two values", openai.Chat, `{} {}`, "request", "invalid_json", "after top-level value"},
		{"an array", openai.Chat, `[]`, "request", wrongType, "must be a JSON object"},
		{"a string", openai.Chat, `"hi"`, "request", wrongType, "must be a JSON object"},
		{"no model", openai.Chat, `{}`, "request.model", missing, `"gpt-4o-mini"`},
		{"a null model", openai.Chat, `{"model":null}`, "request.model", missing, "name a model"},
		{"an empty model", openai.Chat, `{"model":""}`, "request.model", wrongType, "non-empty string"},
		{"a number for a model", openai.Chat, `{"model":4}`, "request.model", wrongType, "non-empty string"},
		{"a model in capitals is another field", openai.Chat, `{"Model":"m"}`, "request.model", missing, "name a model"},
		{"no messages", openai.Chat, `{"model":"m"}`, "request.messages", missing, `"role":"user"`},
		{"null messages", openai.Chat, `{"model":"m","messages":null}`, "request.messages", missing, "give at least one"},
		{"messages as text", openai.Chat, `{"model":"m","messages":"hi"}`, "request.messages", wrongType, "must be an array"},
		{"messages as object", openai.Chat, `{"model":"m","messages":{}}`, "request.messages", wrongType, "must be an array"},
		{"no message", openai.Chat, `{"model":"m","messages":[]}`, "request.messages", empty, "at least one message"},
		{"text for a message", openai.Chat, `{"model":"m","messages":[{},"hi"]}`, "request.messages[1]", wrongType, "must be an object"},
		{"null for a message", openai.Chat, `{"model":"m","messages":[null]}`, "request.messages[0]", wrongType, "must be an object"},
		{"no prompt", openai.Generate, `{"model":"m"}`, "request.prompt", missing, "give a string or an array"},
		{"a number for a prompt", openai.Generate, `{"model":"m","prompt":1}`, "request.prompt", wrongType, "must be a string or an array"},
		{"an empty list of prompts", openai.Generate, `{"model":"m","prompt":[ ]}`, "request.prompt", empty, "at least one element"},
		{"messages for a completion", openai.Generate, `{"model":"m","messages":[{}]}`, "request.prompt", missing, "give a string or an array"},
		{"no input", openai.Embeddings, `{"model":"m","prompt":"hi"}`, "request.input", missing, "give a string or an array"},
		{"an object for an input", openai.Embeddings, `{"model":"m","input":{}}`, "request.input", wrongType, "must be a string or an array"},
		{"an empty list of inputs", openai.Embeddings, `{"model":"m","input":[]}`, "request.input", empty, "at least one element"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openai.Check(tt.kind, []byte(tt.body), "request.")
			var field *openai.FieldError
			require.ErrorAs(t, err, &field)
			require.Equal(t, tt.param, field.Param)
			require.Equal(t, tt.code, field.Code)
			require.True(t, strings.HasPrefix(field.Message, tt.param+": "), field.Message)
			require.Contains(t, field.Message, tt.fix)

			_, err = openai.Check(tt.kind, []byte(tt.body), "")
			require.ErrorAs(t, err, &field)
			require.Contains(t, []string{strings.TrimPrefix(tt.param, "request."), "body"}, field.Param, "as a drop-in call has it")
		})
	}
}

func TestCheckLetsThroughWhatItDoesNotKnow(t *testing.T) {
	tests := []struct {
		kind openai.Kind
		body string
	}{
		{openai.Chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"new"}]}],"invented":{"tomorrow":[1]}}`},
		{openai.Chat, ` {"messages":[{}],"model":"m","temperature":"hot"}`},
		{openai.Generate, `{"model":"m","prompt":""}`},
		{openai.Generate, `{"model":"m","prompt":[[1,2],[3]]}`},
		{openai.Embeddings, `{"model":"m","input":"hi","dimensions":3}`},
		{openai.Embeddings, `{"model":"n","model":"m","input":["hi"]}`}, // the last one counts, as upstreams read it
	}
	for _, tt := range tests {
		model, err := openai.Check(tt.kind, []byte(tt.body), "")
		require.NoError(t, err, tt.body)
		require.Equal(t, "m", model, tt.body)
	}
}

func TestStreams(t *testing.T) {
	tests := []struct {
		body string
		want bool
	}{
		{`{"stream":true}`, true},
		{`{"stream" : true , "model":"m"}`, true},
		{`{"stream":true,"Stream":false}`, true},
		{`{"Stream":true}`, false},
		{`{"stream":false}`, false},
		{`{"stream":null}`, false},
		{`{"stream":"true"}`, false}, // the upstream's to refuse
		{`{"nested":{"stream":true}}`, false},
		{`{}`, false},
		{`not JSON`, false},
		{``, false},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, openai.Streams([]byte(tt.body)), tt.body)
	}
}

// FuzzCheck looks for a body that breaks the reader, or a problem without a field.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{``, `null`, `{"model":"m","messages":[{}]}`, `{"model":"m","prompt":[1]}`, `{"model":"m","input":"x","stream":true}`, "{\"model\":\"\xff\"}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		openai.Streams([]byte(body))
		for _, kind := range openai.Kinds() {
			model, err := openai.Check(kind, []byte(body), "request.")
			if err == nil {
				require.NotEmpty(t, model)
				continue
			}
			var field *openai.FieldError
			require.ErrorAs(t, err, &field)
			require.True(t, strings.HasPrefix(field.Param, "request"), field.Param)
			require.NotEmpty(t, field.Code)
			require.Less(t, len(field.Message), 500)
		}
	})
}
