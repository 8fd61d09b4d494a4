package upstreamtest_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

const (
	chat       = "/v1/chat/completions"
	completion = "/v1/completions"
	embeddings = "/v1/embeddings"
	hello      = `{"model":"m","messages":[{"role":"user","content":"What is a queue?"}]}`
	helloReply = `You said: "What is a queue?" I am a simulated model. I read 4 words and always answer like this.`
)

// reply is an answer read to its end, or as far as it came.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of the request or of reading the body
}

// post sends body with headers given as name, value pairs.
func post(ctx context.Context, url, body string, headers ...string) reply {
	return send(ctx, http.DefaultClient, http.MethodPost, url, body, headers...)
}

func send(ctx context.Context, client *http.Client, method, url, body string, headers ...string) reply {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{err: err}
	}
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: string(data), err: err}
}

// decode reads a JSON answer of a status.
func decode[T any](t *testing.T, r reply, status int) T {
	t.Helper()
	if r.err != nil {
		t.Fatal(r.err)
	}
	if r.status != status {
		t.Fatalf("status is %d, want %d: %s", r.status, status, r.body)
	}
	var v T
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%v in %q", err, r.body)
	}
	return v
}

type answer struct {
	ID, Object, Model string
	Created           int64
	Choices           []struct {
		Message, Delta struct{ Role, Content string }
		Text           string
		FinishReason   string `json:"finish_reason"`
	}
	Data []struct {
		ID        string
		Index     int
		Embedding json.RawMessage
	}
	Usage struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	}
}

func TestChatCompletion(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	r := post(t.Context(), up.BaseURL()+"/chat/completions", hello)
	got := decode[answer](t, r, http.StatusOK)
	if got.Object != "chat.completion" || got.Model != "m" || !strings.HasPrefix(got.ID, "chatcmpl-") || got.Created == 0 {
		t.Errorf("answer is %+v", got)
	}
	if c := got.Choices[0]; c.Message.Role != "assistant" || c.Message.Content != helloReply || c.FinishReason != "stop" {
		t.Errorf("choice is %+v", c)
	}
	if u := got.Usage; u.Prompt < 6 || u.Completion < 15 || u.Total != u.Prompt+u.Completion {
		t.Errorf("usage is %+v", u)
	}
	for _, name := range []string{"X-Request-Id", "Openai-Processing-Ms"} {
		if r.header.Get(name) == "" {
			t.Errorf("no header %s", name)
		}
	}
}

func TestChatAnswersTheLastUserMessage(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	got := decode[answer](t, post(t.Context(), up.URL+chat, `{"model":"m","messages":[
		{"role":"user","content":"first"},
		{"role":"assistant","content":null},
		{"role":"user","content":[{"type":"text","text":"héllo"},{"type":"image_url","image_url":{"url":"x"}},{"type":"text","text":"you"}]},
		{"role":"tool","content":"result"}]}`), http.StatusOK)
	if want := `You said: "héllo  you"`; !strings.HasPrefix(got.Choices[0].Message.Content, want) {
		t.Errorf("answer is %q, want it to begin with %q", got.Choices[0].Message.Content, want)
	}
}

func TestTokenLimitCutsTheAnswer(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	for _, field := range []string{"max_tokens", "max_completion_tokens"} {
		body := strings.Replace(hello, "{", `{"`+field+`":2,`, 1)
		got := decode[answer](t, post(t.Context(), up.URL+chat, body), http.StatusOK)
		if c := got.Choices[0]; c.Message.Content != "You said:" || c.FinishReason != "length" || got.Usage.Completion != 2 {
			t.Errorf("%s: choice is %+v, usage %+v", field, c, got.Usage)
		}
	}
}

func TestCompletion(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	got := decode[answer](t, post(t.Context(), up.URL+completion, `{"model":"m","prompt":"What is a queue?"}`), http.StatusOK)
	if c := got.Choices[0]; got.Object != "text_completion" || c.Text != " "+helloReply || c.FinishReason != "stop" {
		t.Errorf("answer is %+v", got)
	}
}

// events splits a stream and reads its chunks; the last event must be [DONE].
func events(t *testing.T, r reply) []answer {
	t.Helper()
	if r.err != nil || !strings.HasPrefix(r.header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("stream is %+v", r)
	}
	lines := strings.Split(strings.TrimSuffix(r.body, "\n\n"), "\n\n")
	if last := lines[len(lines)-1]; last != "data: [DONE]" {
		t.Fatalf("stream ends with %q", last)
	}
	var chunks []answer
	for _, line := range lines[:len(lines)-1] {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			t.Fatalf("event %q", line)
		}
		var a answer
		if err := json.Unmarshal([]byte(data), &a); err != nil {
			t.Fatalf("%v in %q", err, data)
		}
		chunks = append(chunks, a)
	}
	return chunks
}

func TestChatStream(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{TokensPerSecond: 10_000})
	body := strings.Replace(hello, "{", `{"stream":true,"stream_options":{"include_usage":true},`, 1)
	chunks := events(t, post(t.Context(), up.URL+chat, body))
	var text string
	for _, c := range chunks[:len(chunks)-1] {
		if c.Object != "chat.completion.chunk" || c.ID != chunks[0].ID || len(c.Choices) != 1 {
			t.Errorf("chunk is %+v", c)
		}
		text += c.Choices[0].Delta.Content
	}
	if text != helloReply {
		t.Errorf("text is %q, want %q", text, helloReply)
	}
	if got := chunks[0].Choices[0].Delta.Role; got != "assistant" {
		t.Errorf("first chunk has role %q", got)
	}
	if got := chunks[len(chunks)-2].Choices[0].FinishReason; got != "stop" {
		t.Errorf("finish reason is %q", got)
	}
	// A role, the finish reason and the usage come beside the tokens.
	if last := chunks[len(chunks)-1]; len(last.Choices) != 0 || last.Usage.Completion != len(chunks)-3 {
		t.Errorf("usage chunk is %+v of %d chunks", last, len(chunks))
	}
}

func TestCompletionStreamWithoutUsage(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	var text string
	for _, c := range events(t, post(t.Context(), up.URL+completion, `{"model":"m","stream":true,"prompt":["What is","a queue?"]}`)) {
		if c.Object != "text_completion" || len(c.Choices) != 1 {
			t.Errorf("chunk is %+v", c)
		}
		text += c.Choices[0].Text
	}
	if text != " "+helloReply {
		t.Errorf("text is %q", text)
	}
}

func TestEmbeddings(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	embed := func(rest string) answer {
		return decode[answer](t, post(t.Context(), up.URL+embeddings, `{"model":"m",`+rest+`}`), http.StatusOK)
	}
	floats := embed(`"input":["the quick fox","the quick dog","entirely unrelated words"]`)
	var vectors [3][]float32
	for i, d := range floats.Data {
		if err := json.Unmarshal(d.Embedding, &vectors[i]); err != nil || d.Index != i || len(vectors[i]) != 1536 {
			t.Fatalf("embedding %d: %d numbers, index %d, %v", i, len(vectors[i]), d.Index, err)
		}
		if l := dot(vectors[i], vectors[i]); math.Abs(l-1) > 1e-3 {
			t.Errorf("length of vector %d is %v", i, l)
		}
	}
	if near, far := dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2]); near <= far {
		t.Errorf("texts with common words: %v, without: %v", near, far)
	}
	if floats.Usage.Prompt == 0 || floats.Usage.Total != floats.Usage.Prompt {
		t.Errorf("usage is %+v", floats.Usage)
	}

	var text string
	if err := json.Unmarshal(embed(`"input":"the quick fox","encoding_format":"base64"`).Data[0].Embedding, &text); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range vectors[0] {
		if got := math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])); got != want {
			t.Fatalf("base64 number %d is %v, want %v", i, got, want)
		}
	}

	for rest, want := range map[string]int{
		`"input":"x","dimensions":8`: 1, `"input":[1,2,3]`: 1, `"input":[[1,2],[3]]`: 2,
	} {
		if got := len(embed(rest).Data); got != want {
			t.Errorf("%s: %d vectors, want %d", rest, got, want)
		}
	}
}

func dot(a, b []float32) float64 {
	var sum float64
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

func TestModels(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	get := func(path string) answer {
		return decode[answer](t, send(t.Context(), http.DefaultClient, http.MethodGet, up.URL+path, ""), http.StatusOK)
	}
	var ids []string
	for _, m := range get("/v1/models").Data {
		ids = append(ids, m.ID)
	}
	if !slices.Equal(ids, upstreamtest.DefaultModels()) {
		t.Errorf("models are %q", ids)
	}
	if got := get("/v1/models/gpt-9"); got.ID != "gpt-9" || got.Object != "model" {
		t.Errorf("model is %+v", got)
	}
}

func TestErrorsAreOpenAIs(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{APIKey: "secret", Models: []string{"m", "e"}})
	type envelope struct {
		Error struct {
			Message, Type string
			Param, Code   *string
		}
	}
	tests := []struct {
		name   string
		method string // POST unless set
		path   string
		body   string
		key    string // "secret" unless set
		status int
		param  string
		code   string
	}{
		{name: "no key", path: chat, body: hello, key: "-", status: 401},
		{name: "wrong key", path: chat, body: hello, key: "guess", status: 401, code: "invalid_api_key"},
		{name: "unknown path", path: "/v1/chat", body: hello, status: 404, code: "unknown_url"},
		{name: "wrong method", method: "GET", path: chat, status: 405, code: "method_not_supported"},
		{name: "invalid JSON", path: chat, body: "{", status: 400},
		{name: "wrong type", path: chat, body: `{"model":1}`, status: 400},
		{name: "no model", path: chat, body: `{"messages":[]}`, status: 400, param: "model", code: "missing_required_parameter"},
		{name: "unknown model", path: chat, body: `{"model":"x"}`, status: 404, code: "model_not_found"},
		{name: "unknown model asked for", method: "GET", path: "/v1/models/x", status: 404, code: "model_not_found"},
		{name: "no messages", path: chat, body: `{"model":"m"}`, status: 400, param: "messages", code: "missing_required_parameter"},
		{name: "empty messages", path: chat, body: `{"model":"m","messages":[]}`, status: 400, param: "messages", code: "invalid_value"},
		{name: "no prompt", path: completion, body: `{"model":"m"}`, status: 400, param: "prompt", code: "missing_required_parameter"},
		{name: "no input", path: embeddings, body: `{"model":"e"}`, status: 400, param: "input", code: "missing_required_parameter"},
		{name: "empty input", path: embeddings, body: `{"model":"e","input":""}`, status: 400, param: "input", code: "invalid_value"},
		{name: "empty token list", path: embeddings, body: `{"model":"e","input":[[]]}`, status: 400, param: "input", code: "invalid_value"},
		{name: "object as input", path: embeddings, body: `{"model":"e","input":{}}`, status: 400, param: "input", code: "invalid_value"},
		{name: "dimensions", path: embeddings, body: `{"model":"e","input":"x","dimensions":0}`, status: 400, param: "dimensions", code: "invalid_value"},
		{name: "encoding", path: embeddings, body: `{"model":"e","input":"x","encoding_format":"hex"}`, status: 400, param: "encoding_format", code: "invalid_value"},
		{name: "invalid simulate", path: chat, body: `{"model":"m","simulate":"503"}`, status: 400, param: "simulate", code: "invalid_value"},
	}
	deref := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method, headers := "POST", []string{"Authorization", "Bearer secret"}
			if tt.method != "" {
				method = tt.method
			}
			switch tt.key {
			case "":
			case "-":
				headers = nil
			default:
				headers[1] = "Bearer " + tt.key
			}
			got := decode[envelope](t, send(t.Context(), http.DefaultClient, method, up.URL+tt.path, tt.body, headers...), tt.status).Error
			if got.Message == "" || got.Type != "invalid_request_error" || deref(got.Param) != tt.param || deref(got.Code) != tt.code {
				t.Errorf("error is %+v (param %q, code %q), want param %q, code %q",
					got, deref(got.Param), deref(got.Code), tt.param, tt.code)
			}
		})
	}
}
