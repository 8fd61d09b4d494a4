package openai_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"

	"github.com/ferry-queue/ferry/internal/httpx"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

func ExampleCheck() {
	_, err := openai.Check(openai.Chat, []byte(`{"model":"gpt-4o-mini","messages":[]}`), "request.")
	fmt.Println(err)

	model, err := openai.Check(openai.Embeddings, []byte(`{"model":"text-embedding-3-small","input":"Hello"}`), "request.")
	fmt.Println(model, err)
	// Output:
	// request.messages: is empty; give at least one message
	// text-embedding-3-small <nil>
}

func ExampleUpstream_Do() {
	sim := httptest.NewServer(upstreamtest.New(upstreamtest.Config{Faults: upstreamtest.MustParseFaults("503*1")}))
	defer sim.Close()
	u, err := openai.New(openai.Config{Name: "sim", BaseURL: sim.URL + "/v1", APIKey: "sk-example"}, nil, httpx.Hooks{})
	if err != nil {
		panic(err)
	}
	defer u.Close()
	answer, err := u.Do(context.Background(), openai.Call{
		Kind:           openai.Embeddings,
		Body:           []byte(`{"model":"text-embedding-3-small","input":"Hello"}`),
		IdempotencyKey: "job_1",
	})
	if err != nil {
		panic(err)
	}
	for _, a := range answer.Attempts {
		fmt.Println(a.Status, a.Class)
	}
	fmt.Println("JSON:", json.Valid(answer.Body))
	// Output:
	// 503 transient
	// 200 ok
	// JSON: true
}

func ExampleRedact() {
	fmt.Println(openai.Redact("Incorrect API key provided: sk-proj-********wxyz"))
	// Output: Incorrect API key provided: [redacted]
}
