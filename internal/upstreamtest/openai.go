package upstreamtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// request holds the fields of all endpoints that an answer depends on.
type request struct {
	Model               string          `json:"model"`
	Messages            []message       `json:"messages"` // chat
	Prompt              json.RawMessage `json:"prompt"`   // completions
	Input               json.RawMessage `json:"input"`    // embeddings
	Stream              bool            `json:"stream"`
	StreamOptions       streamOptions   `json:"stream_options"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Dimensions          *int            `json:"dimensions"`
	EncodingFormat      string          `json:"encoding_format"`
	Simulate            *string         `json:"simulate"` // ours: the faults of this request

	texts []string // Prompt or Input, read by check
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a message's text: a string, or the text parts of an array.
type content string

func (c *content) UnmarshalJSON(data []byte) error {
	if data[0] != '[' {
		return json.Unmarshal(data, (*string)(c))
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	var texts []string
	for _, p := range parts {
		texts = append(texts, p.Text)
	}
	*c = content(strings.Join(texts, " "))
	return nil
}

const (
	pathChat        = "/v1/chat/completions"
	pathCompletions = "/v1/completions"
	pathEmbeddings  = "/v1/embeddings"
	pathModels      = "/v1/models"
)

// check finds the first thing that OpenAI would refuse, or nil.
func (x *exchange) check() *problem {
	method, model := http.MethodPost, x.req.Model
	switch path := x.r.URL.Path; {
	case path == pathChat, path == pathCompletions, path == pathEmbeddings:
	case path == pathModels:
		method = http.MethodGet
	case strings.HasPrefix(path, pathModels+"/") && path != pathModels+"/":
		method, model = http.MethodGet, strings.TrimPrefix(path, pathModels+"/")
	default:
		return problemPath(x.r.Method, path)
	}
	if x.r.Method != method {
		return problemMethod(x.r.Method)
	}
	if key := x.s.cfg.APIKey; key != "" && x.r.Header.Get("Authorization") != "Bearer "+key {
		return problemKey(x.r.Header.Get("Authorization") != "")
	}
	switch {
	case x.problem != nil:
		return x.problem
	case method == http.MethodPost && model == "":
		return problemMissing("model")
	case model != "" && len(x.s.cfg.Models) > 0 && !slices.Contains(x.s.cfg.Models, model):
		return problemModel(model)
	}
	return x.checkInput()
}

// checkInput looks at the field that an endpoint is about, and reads it.
func (x *exchange) checkInput() *problem {
	param, raw := "", json.RawMessage(nil)
	switch x.r.URL.Path {
	case pathChat:
		if x.req.Messages == nil {
			return problemMissing("messages")
		}
		if len(x.req.Messages) == 0 {
			return problemInvalid("messages", "an array with minimum length 1")
		}
		return nil
	case pathCompletions:
		param, raw = "prompt", x.req.Prompt
	case pathEmbeddings:
		param, raw = "input", x.req.Input
		if d := x.req.Dimensions; d != nil && (*d < 1 || *d > maxDimensions) {
			return problemInvalid("dimensions", fmt.Sprintf("a number from 1 to %d", maxDimensions))
		}
		if f := x.req.EncodingFormat; f != "" && f != "float" && f != "base64" {
			return problemInvalid("encoding_format", "'float' or 'base64'")
		}
	default:
		return nil
	}
	if len(raw) == 0 {
		return problemMissing(param)
	}
	texts, ok := readTexts(raw)
	if !ok {
		return problemInvalid(param, "a non-empty string, an array of strings, or tokens")
	}
	x.req.texts = texts
	return nil
}

// readTexts reads a prompt or input in any of its four forms. Tokens become text
// that is as long as they were.
func readTexts(raw json.RawMessage) ([]string, bool) {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, one != ""
	}
	var many []string
	if json.Unmarshal(raw, &many) == nil {
		return many, len(many) > 0 && !slices.Contains(many, "")
	}
	var tokens []int
	if json.Unmarshal(raw, &tokens) == nil {
		return []string{tokenText(tokens)}, true
	}
	var lists [][]int
	if json.Unmarshal(raw, &lists) != nil {
		return nil, false
	}
	texts := make([]string, 0, len(lists))
	for _, list := range lists {
		if len(list) == 0 {
			return nil, false
		}
		texts = append(texts, tokenText(list))
	}
	return texts, true
}

func tokenText(tokens []int) string { return strings.Trim(fmt.Sprint(tokens), "[]") }

// answer sends what was asked for. check has found the request sound.
func (x *exchange) answer() {
	switch x.r.URL.Path {
	case pathChat:
		last := x.req.Messages[len(x.req.Messages)-1]
		for _, m := range x.req.Messages {
			if m.Role == "user" {
				last = m
			}
		}
		x.generate(reply(string(last.Content)), promptTokens(x.req.Messages))
	case pathCompletions:
		// One choice, whatever the number of prompts: enough for a queue.
		text := strings.Join(x.req.texts, " ")
		x.generate(" "+reply(text), len(split(text)))
	case pathEmbeddings:
		x.embed()
	default:
		x.models()
	}
}

// reply answers a message: friendly, and always the same.
func reply(text string) string {
	words := len(strings.Fields(text))
	unit := "words"
	if words == 1 {
		unit = "word"
	}
	return fmt.Sprintf("You said: %q I am a simulated model. I read %d %s and always answer like this.", text, words, unit)
}

// split cuts text into what passes for tokens: words with the space before
// them, in pieces of at most six characters. Joined, they are the text.
func split(text string) []string {
	const longest = 6
	var tokens []string
	start, size := 0, 0
	for i, r := range text {
		if i > start && (r == ' ' || size == longest) {
			tokens = append(tokens, text[start:i])
			start, size = i, 0
		}
		size++
	}
	if start < len(text) {
		tokens = append(tokens, text[start:])
	}
	return tokens
}

// promptTokens counts messages as OpenAI does: three more for each, and three
// that begin the answer.
func promptTokens(messages []message) int {
	n := 3
	for _, m := range messages {
		n += 3 + len(split(string(m.Content)))
	}
	return n
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens,omitempty"` // none for embeddings
	TotalTokens      int `json:"total_tokens"`
}

// completion is the answer, or one chunk of it, of both text endpoints.
type completion struct {
	ID                string   `json:"id"`
	Object            string   `json:"object"`
	Created           int64    `json:"created"`
	Model             string   `json:"model"`
	Choices           []choice `json:"choices"`
	Usage             *usage   `json:"usage,omitempty"`
	SystemFingerprint string   `json:"system_fingerprint"`
}

type choice struct {
	Index        int          `json:"index"`
	Message      *chatMessage `json:"message,omitempty"`
	Delta        *chatMessage `json:"delta,omitempty"`
	Text         *string      `json:"text,omitempty"`
	Logprobs     *struct{}    `json:"logprobs"`
	FinishReason *string      `json:"finish_reason"`
}

type chatMessage struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

// generate sends text, cut at the request's token limit, as an answer or stream.
func (x *exchange) generate(text string, promptTokens int) {
	tokens, finish := split(text), "stop"
	if limit := x.tokenLimit(); limit > 0 && limit < len(tokens) {
		tokens, finish = tokens[:limit], "length"
	}
	u := &usage{PromptTokens: promptTokens, CompletionTokens: len(tokens), TotalTokens: promptTokens + len(tokens)}
	if x.req.Stream {
		x.writeEvents(x.events(tokens, finish, u), x.pace(1))
		return
	}
	if !x.sleep(x.pace(len(tokens))) {
		return
	}
	c := x.completion(false)
	c.Choices = []choice{x.choice(strings.Join(tokens, ""), "assistant", false)}
	c.Choices[0].FinishReason = &finish
	c.Usage = u
	x.writeJSON(c)
}

func (x *exchange) tokenLimit() int {
	for _, limit := range []*int{x.req.MaxCompletionTokens, x.req.MaxTokens} {
		if limit != nil {
			return *limit
		}
	}
	return 0
}

// pace is the time that n tokens take.
func (x *exchange) pace(n int) time.Duration {
	if x.s.cfg.TokensPerSecond <= 0 {
		return 0
	}
	return time.Duration(float64(n) / x.s.cfg.TokensPerSecond * float64(time.Second))
}

func (x *exchange) completion(chunk bool) completion {
	c := completion{
		ID: x.id("cmpl-"), Object: "text_completion", Created: x.record.Time.Unix(), Model: x.req.Model,
		SystemFingerprint: "fp_simulated",
	}
	if x.r.URL.Path == pathChat {
		c.ID, c.Object = "chat"+c.ID, "chat.completion"
		if chunk {
			c.Object = "chat.completion.chunk"
		}
	}
	return c
}

// choice holds text where the endpoint has it.
func (x *exchange) choice(text, role string, chunk bool) choice {
	switch {
	case x.r.URL.Path == pathCompletions:
		return choice{Text: &text}
	case chunk:
		return choice{Delta: &chatMessage{Role: role, Content: &text}}
	default:
		return choice{Message: &chatMessage{Role: role, Content: &text}}
	}
}

// events are the chunks of a stream: for chat the role first, then a token each,
// the finish reason, the usage if asked for, and [DONE].
func (x *exchange) events(tokens []string, finish string, u *usage) [][]byte {
	c := x.completion(true)
	events := make([][]byte, 0, len(tokens)+4)
	add := func(choices ...choice) {
		c.Choices = choices
		events = append(events, event(c))
	}
	if x.r.URL.Path == pathChat {
		add(x.choice("", "assistant", true))
	}
	for _, token := range tokens {
		add(x.choice(token, "", true))
	}
	last := x.choice("", "", true)
	if last.Delta != nil {
		last.Delta = &chatMessage{}
	}
	last.FinishReason = &finish
	add(last)
	if x.req.StreamOptions.IncludeUsage {
		c.Usage, c.Choices = u, []choice{}
		events = append(events, event(c))
	}
	return append(events, []byte("data: [DONE]\n\n"))
}

func event(c completion) []byte {
	data, err := json.Marshal(c)
	if err != nil { // our own types always encode
		panic(fmt.Errorf("upstreamtest: event: %w", err))
	}
	return slices.Concat([]byte("data: "), data, []byte("\n\n"))
}

type model struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

type list[T any] struct {
	Object string `json:"object"`
	Data   []T    `json:"data"`
	Model  string `json:"model,omitempty"`
	Usage  *usage `json:"usage,omitempty"`
}

func (x *exchange) models() {
	if id, ok := strings.CutPrefix(x.r.URL.Path, pathModels+"/"); ok {
		x.writeJSON(newModel(id))
		return
	}
	ids := x.s.cfg.Models
	if len(ids) == 0 {
		ids = DefaultModels()
	}
	all := list[model]{Object: "list"}
	for _, id := range ids {
		all.Data = append(all.Data, newModel(id))
	}
	x.writeJSON(all)
}

func newModel(id string) model {
	const created = 1735689600 // 2025-01-01
	return model{ID: id, Object: "model", Created: created, OwnedBy: "simulated"}
}
