package openai_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/openai"
)

func TestParseError(t *testing.T) {
	text := func(s string) *string { return &s }
	tests := []struct {
		name, body string
		want       openai.ErrorBody
	}{
		{
			"OpenAI's envelope",
			`{"error":{"message":"Unknown model.","type":"invalid_request_error","param":"model","code":"model_not_found"}}`,
			openai.ErrorBody{Message: "Unknown model.", Type: "invalid_request_error", Param: text("model"), Code: text("model_not_found")},
		},
		{"nulls", `{"error":{"message":"No.","type":null,"param":null,"code":null}}`, openai.ErrorBody{Message: "No."}},
		{"a number for a code", `{"error":{"message":"No.","code":404}}`, openai.ErrorBody{Message: "No.", Code: text("404")}},
		{"an object for a param", `{"error":{"message":"No.","param":{"a":1}}}`, openai.ErrorBody{Message: "No."}},
		{"a list for a code", `{"error":{"message":"No.","code":[1]}}`, openai.ErrorBody{Message: "No."}},
		{"a code alone", `{"error":{"code":"insufficient_quota"}}`, openai.ErrorBody{Code: text("insufficient_quota")}},
		{"Ollama", `{"error":"model \"x\" not found"}`, openai.ErrorBody{Message: `model "x" not found`}},
		{"vLLM", `{"object":"error","message":"too long","type":"BadRequestError","code":400}`, openai.ErrorBody{Message: "too long"}},
		{"FastAPI", `{"detail":"Not Found"}`, openai.ErrorBody{Message: "Not Found"}},
		{
			"the key it was sent",
			`{"error":{"message":"Incorrect API key provided: sk-abcd****************wxyz.","type":"bad key=sk-live-123456","code":"sk-live-123456"}}`,
			openai.ErrorBody{Message: "Incorrect API key provided: [redacted]", Type: "bad key=[redacted]", Code: text("[redacted]")},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := openai.ParseError([]byte(tt.body))
			require.True(t, ok)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestParseErrorRefusesWhatIsNone(t *testing.T) {
	for _, body := range []string{
		``, `null`, `{}`, `[]`, `"text"`, `{"error":null}`, `{"error":{}}`, `{"error":""}`, `{"error":[]}`, `{"error":1}`, `{"error":true}`,
		`{"detail":[{"msg":"bad"}]}`, `{"message":1}`, `<html>502</html>`, `{"error":{"message":"cut`,
	} {
		got, ok := openai.ParseError([]byte(body))
		require.False(t, ok, body)
		require.Zero(t, got, body)
	}
}

func TestParseErrorCutsAtACharacter(t *testing.T) {
	body, err := json.Marshal(openai.Envelope{Error: openai.ErrorBody{Message: strings.Repeat("ü", 5000), Type: strings.Repeat("x", 500)}})
	require.NoError(t, err)
	got, ok := openai.ParseError(body)
	require.True(t, ok)
	require.Equal(t, strings.Repeat("ü", 1000)+"…", got.Message)
	require.Equal(t, strings.Repeat("x", 100)+"…", got.Type)
}

func TestRedact(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a project key", "key sk-proj-aB3_x-9yZ and more", "key [redacted] and more"},
		{"a masked key", "Incorrect API key provided: sk-proj-****************wxyz.", "Incorrect API key provided: [redacted]"},
		{"a key without digits", "sk-abcdefghij", "[redacted]"},
		{"Groq", "gsk_abcDEF123456", "[redacted]"},
		{"xAI", "xai-abcDEF123456", "[redacted]"},
		{"a key of another name", "key-0123456789abcdef", "[redacted]"},
		{"a bearer token", "Authorization: Bearer eyJhbGciOi.J9.x-y_z", "Authorization: Bearer [redacted]"},
		{"in lower case", "got bearer abcdef123", "got Bearer [redacted]"},
		{"key=value", "GET /v1?api_key=abcdef123&x=1", "GET /v1?api_key=[redacted]&x=1"},
		{"key: value", "x-api-key: abcdef123", "x-api-key: [redacted]"},
		{"JSON", `{"password": "hunter2hunter2"}`, `{"password": "[redacted]"}`},
		{"a longer name", "access_token=abcdef123, client_secret='abcdef123'", "access_token=[redacted], client_secret='[redacted]'"},
		{"two of them", "sk-aaaaaaaa sk-bbbbbbbb", "[redacted] [redacted]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, openai.Redact(tt.text))
			require.Equal(t, tt.want, openai.Redact(tt.want), "once is enough")
		})
	}
}

func TestRedactLeavesInnocentTextAlone(t *testing.T) {
	for _, text := range []string{
		"",
		"ok",
		"The model `gpt-4o-mini` does not exist or you do not have access to it.",
		"This model's maximum context length is 8192 tokens. However, you requested 10000 tokens.",
		"Rate limit reached for gpt-4o in organization org-abc on tokens per min (TPM): Limit 30000, Used 29000.",
		"You must provide an API key.",
		"max_tokens: 4096000 is too large",
		"Unexpected token: {",
		"use a key-value store; sk-learn is fine",
		"request req_011CSHoEeqs5C35K2UUqR7Fy: overloaded",
		"Bearer auth is required",
	} {
		require.Equal(t, text, openai.Redact(text))
	}
}

// FuzzParseError looks for a body that breaks the parser, passes a key on, or grows without bound.
func FuzzParseError(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `{"error":{"message":"m","type":"t","param":"p","code":7}}`, `{"error":"text"}`, `{"message":"m"}`, `{"detail":"d"}`,
		`{"error":{"message":"key sk-proj-0123456789"}}`, "{\"error\":\"\xff\\u0000\"}", `{"error":{"message":["m"]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, ok := openai.ParseError(body)
		if !ok {
			require.Zero(t, e)
			return
		}
		texts := []string{e.Message, e.Type}
		for _, p := range []*string{e.Param, e.Code} {
			if p != nil {
				texts = append(texts, *p)
			}
		}
		for _, text := range texts {
			require.LessOrEqual(t, len(text), 2000+len("…"))
			require.True(t, utf8.ValidString(text), "%q", text)
			require.NotRegexp(t, `\bsk-[A-Za-z0-9]{20}`, text)
		}
	})
}
