package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/ferry-queue/ferry/client"
)

// newServer is a stand-in for Ferry whose jobs succeed as soon as someone waits for them.
func newServer() *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"id":"job_1","object":"job","kind":"chat","state":"queued"}`)
	})
	mux.HandleFunc("GET /v1/jobs/job_1", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"id":"job_1","object":"job","kind":"chat","state":"succeeded","attempts":2,"result":{"choices":[]}}`)
	})
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("after") == "" {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"job_2"}],"has_more":true,"next":"job_2"}`)
			return
		}
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"job_1"}],"has_more":false}`)
	})
	mux.HandleFunc("POST /v1/jobs/job_1/cancel", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"error":{"message":"the job has succeeded","type":"conflict","param":null,"code":"job_ended"}}`)
	})
	mux.HandleFunc("GET /v1/upstreams", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"object":"list","data":[{"name":"openai","breaker":{"state":"open","calls":60,"failures":42},"jobs":{"ready":7}}]}`)
	})
	mux.HandleFunc("POST /v1/upstreams/openai/close", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"name":"openai","breaker":{"state":"closed","mode":"close"},"jobs":{}}`)
	})
	return httptest.NewServer(mux)
}

func Example() {
	server := newServer() // yours is at client.DefaultBaseURL
	defer server.Close()
	ctx := context.Background()

	c, err := client.New(client.Config{BaseURL: server.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	job, err := c.Submit(ctx, client.SubmitRequest{
		Kind:    client.KindChat,
		Request: map[string]any{"model": "gpt-4o-mini", "messages": []map[string]string{{"role": "user", "content": "Hi"}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(job.ID, job.State)

	job, err = c.Wait(ctx, job.ID)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s after %d attempts: %s\n", job.State, job.Attempts, job.Result)
	// Output:
	// job_1 queued
	// succeeded after 2 attempts: {"choices":[]}
}

func ExampleClient_All() {
	server := newServer()
	defer server.Close()
	c, err := client.New(client.Config{BaseURL: server.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	for job, err := range c.All(context.Background(), client.ListOptions{State: client.StateFailed}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(job.ID)
	}
	// Output:
	// job_2
	// job_1
}

// Nobody waits for the breaker's own probes when the provider has said that it is back.
func ExampleClient_Override() {
	server := newServer()
	defer server.Close()
	ctx := context.Background()
	c, err := client.New(client.Config{BaseURL: server.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	upstreams, err := c.Upstreams(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, up := range upstreams {
		fmt.Printf("%s is %s after %d of %d calls, %d jobs are ready\n",
			up.Name, up.Breaker.State, up.Breaker.Failures, up.Breaker.Calls, up.Jobs.Ready)
		if up.Breaker.State != client.BreakerOpen {
			continue
		}
		now, err := c.Override(ctx, up.Name, client.ModeClose)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s is %s\n", now.Name, now.Breaker.State)
	}
	// Output:
	// openai is open after 42 of 60 calls, 7 jobs are ready
	// openai is closed
}

func ExampleAPIError() {
	server := newServer()
	defer server.Close()
	c, err := client.New(client.Config{BaseURL: server.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Cancel(context.Background(), "job_1")
	if e, ok := errors.AsType[*client.APIError](err); ok && e.Status == http.StatusConflict {
		fmt.Println("too late:", e.Message)
	}
	// Output: too late: the job has succeeded
}
