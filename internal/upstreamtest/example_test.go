package upstreamtest_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// An upstream that is down for the first two requests of every job.
func Example() {
	up := upstreamtest.New(upstreamtest.Config{Faults: upstreamtest.MustParseFaults("503*2")})
	ts := httptest.NewServer(up)
	defer ts.Close()

	body := `{"model": "gpt-5-mini", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}`
	for range 3 {
		r := post(context.Background(), ts.URL+"/v1/chat/completions", body, "Idempotency-Key", "job_1")
		fmt.Println(r.status)
	}
	fmt.Printf("%+v\n", up.Tally("job_1"))
	// Output:
	// 503
	// 503
	// 200
	// {Requests:3 Answers:1}
}

// A test decides what the next requests meet.
func ExampleServer_Script() {
	up := upstreamtest.New(upstreamtest.Config{})
	ts := httptest.NewServer(up)
	defer ts.Close()

	up.Script(
		upstreamtest.Step{Fault: upstreamtest.Status(429)},
		upstreamtest.Step{Fault: upstreamtest.Reset},
		upstreamtest.Step{}, // a normal answer
	)
	for range 3 {
		r := post(context.Background(), ts.URL+"/v1/embeddings", `{"model": "e", "input": "x", "dimensions": 1}`)
		fmt.Println(r.status, r.err != nil)
	}
	// Output:
	// 429 false
	// 0 true
	// 200 false
}

func ExampleParseFaults() {
	f, err := upstreamtest.ParseFaults("503*2, reset=0.1, latency=200ms")
	fmt.Println(f, err)
	fmt.Println(f.First, f.Shares, f.Latency)
	// Output:
	// 503*2,reset=0.1,latency=200ms <nil>
	// [{503 2}] [{reset 0.1}] 200ms
}
