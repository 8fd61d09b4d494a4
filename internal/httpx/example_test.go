package httpx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// replies is an upstream for the examples: it gives its answers in order.
type replies []*http.Response

func reply(status int, body string, header ...string) *http.Response {
	h := make(http.Header)
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, ContentLength: -1, Body: io.NopCloser(bytes.NewReader([]byte(body)))}
}

func (r *replies) RoundTrip(*http.Request) (*http.Response, error) {
	next := (*r)[0]
	*r = (*r)[1:]
	return next, nil
}

func (r *replies) transport(http.RoundTripper) http.RoundTripper { return r }

// Two failures, then an answer: one call, and a record of what it took.
func ExampleClient_Do() {
	upstream := &replies{
		reply(503, "busy"),
		reply(429, "slow down", "retry-after-ms", "30"),
		reply(200, `{"choices":[]}`),
	}
	client, err := httpx.New(httpx.Config{
		Policy: httpx.Policy{
			MaxAttempts: 3,
			Backoff:     httpx.Backoff{Base: 10 * time.Millisecond, Jitter: httpx.JitterNone},
		},
		Transport: upstream.transport, // only in examples and tests
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	resp, err := client.Do(context.Background(), httpx.Request{
		URL:            "https://upstream.test/v1/chat/completions",
		Body:           []byte(`{"model":"m","messages":[]}`),
		IdempotencyKey: "job_1",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, a := range resp.Attempts {
		fmt.Printf("%s %s, then %s (%s)\n", a.Class, a.Reason, a.Wait, a.WaitReason)
	}
	fmt.Println(string(resp.Body))
	// Output:
	// transient http_503, then 10ms (backoff)
	// throttled http_429, then 30ms (retry_after)
	// ok ok, then 0s ()
	// {"choices":[]}
}

// The upstream asks for a wait that is too long for a worker: the error carries it, and the queue does the waiting.
func ExampleError() {
	upstream := &replies{reply(429, "", "Retry-After", "20")}
	client, _ := httpx.New(httpx.Config{Transport: upstream.transport})
	defer client.Close()

	_, err := client.Do(context.Background(), httpx.Request{URL: "https://upstream.test/v1/embeddings"})
	var e *httpx.Error
	if errors.As(err, &e) && e.Class.Retryable() {
		fmt.Println("snooze", e.Wait, "because of", e.WaitReason)
	}
	fmt.Println(err)
	// Output:
	// snooze 20s because of retry_after
	// httpx: throttled: http_429 after 1 attempts (wait_above_limit), wait 20s (retry_after)
}

// A schedule with its extremes: rnd is chance, here none.
func ExampleBackoff_Wait() {
	b := httpx.Backoff{Base: 100 * time.Millisecond, Max: time.Second, Multiplier: 2, Jitter: httpx.JitterEqual}
	for n := range 5 {
		shortest := b.Wait(n+1, func() float64 { return 0 })
		longest := b.Wait(n+1, func() float64 { return 1 })
		fmt.Printf("retry %d waits %v to %v\n", n+1, shortest, longest)
	}
	// Output:
	// retry 1 waits 50ms to 100ms
	// retry 2 waits 100ms to 200ms
	// retry 3 waits 200ms to 400ms
	// retry 4 waits 400ms to 800ms
	// retry 5 waits 500ms to 1s
}

// All problems at once, each with its key.
func ExamplePolicy_Validate() {
	p := httpx.Policy{
		MaxAttempts: 200,
		Backoff:     httpx.Backoff{Base: 2 * time.Second, Max: time.Second},
		Attempt:     time.Minute, Total: 30 * time.Second,
	}
	fmt.Println(p.WithDefaults().Validate())
	// Output:
	// max_attempts: 200 is not between 1 and 100
	// attempt: 1m0s is above total 30s
	// backoff.max: 1s is below base 2s
}

// A policy per kind of endpoint, by how much the answer is waited for.
func ExamplePresets() {
	presets := httpx.Presets()
	for _, kind := range []string{"chat", "generate", "embeddings", "batch"} {
		p := presets[kind]
		fmt.Printf("%-10s %d attempts, first byte within %v, %v in all\n", kind, p.MaxAttempts, p.FirstByte, p.Total)
	}
	// Output:
	// chat       3 attempts, first byte within 1m0s, 5m0s in all
	// generate   3 attempts, first byte within 3m0s, 15m0s in all
	// embeddings 4 attempts, first byte within 30s, 3m0s in all
	// batch      5 attempts, first byte within 10m0s, 1h0m0s in all
}

// What an attempt's outcome means for the next one.
func ExampleClassify() {
	for _, o := range []httpx.Outcome{
		{Status: 200},
		{Status: 400},
		{Status: 429, Header: http.Header{"Retry-After": {"1.5"}}},
		{Status: 502, Sent: true},
		{Err: io.ErrUnexpectedEOF, Sent: true},
		{Err: httpx.ErrDialTimeout},
	} {
		v := httpx.Classify(o)
		fmt.Printf("%s %s wait=%v unknown=%t unhealthy=%t\n", v.Class, v.Reason, v.Wait, v.OutcomeUnknown, v.Unhealthy)
	}
	// Output:
	// ok ok wait=0s unknown=false unhealthy=false
	// permanent http_400 wait=0s unknown=false unhealthy=false
	// throttled http_429 wait=1.5s unknown=false unhealthy=false
	// transient http_502 wait=0s unknown=true unhealthy=true
	// transient eof wait=0s unknown=true unhealthy=true
	// transient timeout_dial wait=0s unknown=false unhealthy=true
}

// Hooks see each event once; this is where log lines and metrics come from.
func ExampleHooks() {
	upstream := &replies{reply(500, ""), reply(400, "")}
	client, _ := httpx.New(httpx.Config{
		Policy:    httpx.Policy{Backoff: httpx.Backoff{Base: time.Millisecond, Jitter: httpx.JitterNone}},
		Transport: upstream.transport,
		Hooks: httpx.Hooks{
			Attempt: func(_ context.Context, a httpx.Attempt) { fmt.Println("attempt:", a.Class, a.Reason) },
			Wait:    func(_ context.Context, w httpx.Wait) { fmt.Println("wait:", w.Duration, w.Reason) },
			GiveUp:  func(_ context.Context, e *httpx.Error) { fmt.Println("give up:", e.Reason, e.Stopped) },
		},
	})
	defer client.Close()
	_, _ = client.Do(context.Background(), httpx.Request{URL: "https://upstream.test/"})
	// Output:
	// attempt: transient http_500
	// wait: 1ms backoff
	// attempt: permanent http_400
	// give up: http_400 final
}

// fuse is the smallest breaker: one failure blows it.
type fuse struct{ blown bool }

type blownError struct{}

func (blownError) Error() string             { return "fuse is blown" }
func (blownError) RetryAfter() time.Duration { return 5 * time.Second }

func (f *fuse) Run(work func() error) error {
	if f.blown {
		return blownError{}
	}
	err := work()
	f.blown = err != nil && !errors.Is(err, context.Canceled)
	return err
}

// Anything with a Run method is a breaker. A refusal is noticed because work was not run.
func ExampleBreaker() {
	upstream := &replies{reply(500, "")}
	client, _ := httpx.New(httpx.Config{
		Policy:    httpx.Policy{Backoff: httpx.Backoff{Base: time.Millisecond}},
		Breaker:   new(fuse),
		Transport: upstream.transport,
	})
	defer client.Close()
	_, err := client.Do(context.Background(), httpx.Request{URL: "https://upstream.test/"})
	fmt.Println(err)
	// Output:
	// httpx: refused: breaker_open after 1 attempts (refused), wait 5s (breaker_open)
}

// The answer as it arrives. A higher attempt number starts it over.
func ExampleRequest_stream() {
	upstream := &replies{reply(200, "data: one\n\ndata: two\n\n")}
	client, _ := httpx.New(httpx.Config{Transport: upstream.transport})
	defer client.Close()
	_, _ = client.Do(context.Background(), httpx.Request{
		URL: "https://upstream.test/v1/chat/completions",
		Stream: func(attempt int, chunk []byte) error {
			fmt.Printf("attempt %d: %q\n", attempt, chunk)
			return nil
		},
	})
	// Output:
	// attempt 1: "data: one\n\ndata: two\n\n"
}
