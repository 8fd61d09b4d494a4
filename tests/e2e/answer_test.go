package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// answerOf is the text of a chat completion.
func answerOf(t *testing.T, result json.RawMessage) string {
	t.Helper()
	var completion struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(result, &completion); err != nil || len(completion.Choices) == 0 {
		t.Fatalf("result is no completion (%v): %s", err, result)
	}
	return completion.Choices[0].Message.Content
}

func TestFirstAnswer(t *testing.T) {
	s := start(t, options{workers: 1})
	status, body := s.do(http.MethodPost, "/v1/jobs", nil, strings.NewReader(
		`{"kind":"chat","request":{"model":"gpt-5-mini","messages":[{"role":"user","content":"Hello"}]}}`))
	if status != http.StatusAccepted {
		t.Fatalf("POST: status %d, want 202: %s", status, body)
	}
	var job client.Job
	if err := json.Unmarshal(body, &job); err != nil {
		t.Fatal(err)
	}
	status, body = s.do(http.MethodGet, "/v1/jobs/"+job.ID+"?wait=10s", nil, nil)
	if err := json.Unmarshal(body, &job); err != nil || status != http.StatusOK {
		t.Fatalf("GET: status %d, %v: %s", status, err, body)
	}
	wantState(t, []*client.Job{&job}, client.StateSucceeded)
	if answer := answerOf(t, job.Result); answer == "" {
		t.Errorf("the answer is empty: %s", job.Result)
	}
	until(t, 5*time.Second, "the dashboard shows the task", func() bool {
		_, page := s.do(http.MethodGet, "/dashboard/api/queues/"+queueName+"/completed_tasks", nil, nil)
		return strings.Contains(string(page), job.ID)
	})
}

// What Ferry does not know it must not touch: an upstream may sign, cache or count the bytes.
func TestRequestReachesUpstreamByteForByte(t *testing.T) {
	s := start(t, options{workers: 1})
	requests := []string{
		"{ \"model\" :\t\"gpt-5-mini\",\n\n \"messages\":[ {\"role\":\"user\",\"content\":\"odd  spacing\"} ]\r\n}",
		`{"model":"gpt-5-mini","messages":[{"role":"user","content":"x"}],"invented_tomorrow":{"b":1,"a":[null,1.0,1e0,1.00]}}`,
		`{"model":"gpt-5-mini","messages":[{"role":"user","content":"\u0041A \u00e9é \ud83d\ude00😀 \/ <&> \u2028"}]}`,
		`{"model":"gpt-5-mini","messages":[{"role":"user","content":"x"}],"big":123456789012345678901234567890,"tiny":1e-400}`,
		`{"model":"gpt-5-mini","messages":[{"role":"user","content":"x"}],"twice":1,"twice":2}`,
	}
	for _, request := range requests {
		status, body := s.do(http.MethodPost, "/v1/jobs", nil, strings.NewReader(`{"request": `+request+` , "kind":"chat"}`))
		var job client.Job
		if err := json.Unmarshal(body, &job); err != nil || status != http.StatusAccepted {
			t.Fatalf("POST of %s: status %d, %v: %s", request, status, err, body)
		}
		wantState(t, []*client.Job{s.wait(&job, 30*time.Second)}, client.StateSucceeded)
		journal := s.upstream.Journal()
		last := journal[len(journal)-1]
		if got := string(last.Body); got != request {
			t.Errorf("the upstream got\n%q, want\n%q", got, request)
		}
		if last.Key != job.ID {
			t.Errorf("the upstream got Idempotency-Key %q, want the job's ID %q", last.Key, job.ID)
		}
	}
}

func TestLoneJobIsPickedUpAtOnce(t *testing.T) {
	s := start(t, options{workers: 1})
	s.wait(s.submit(chat("opens the connections", "")), 30*time.Second)
	const jobs = 50
	var toUpstream, toStart, toAnswer []time.Duration
	for i := range jobs {
		// Whatever polls must not meet the jobs in step.
		pass(t, 50*time.Millisecond+rand.N(50*time.Millisecond))
		began := time.Now()
		job := s.submit(chat(fmt.Sprintf("job %d", i), ""))
		job = s.wait(job, 30*time.Second)
		toAnswer = append(toAnswer, time.Since(began))
		wantState(t, []*client.Job{job}, client.StateSucceeded)
		journal := s.upstream.Journal()
		toUpstream = append(toUpstream, journal[len(journal)-1].Time.Sub(began))
		toStart = append(toStart, job.StartedAt.Sub(job.CreatedAt))
	}
	for name, times := range map[string][]time.Duration{
		"pickup_created_to_started": toStart, "pickup_submit_to_upstream": toUpstream, "pickup_submit_to_answer": toAnswer,
	} {
		slices.Sort(times)
		figure(t, name+"_p50", percentile(times, 50))
		figure(t, name+"_p99", percentile(times, 99))
	}
	if median := percentile(toStart, 50); median >= 30*time.Millisecond {
		t.Errorf("half of the lone jobs waited longer than %s for a worker, want below 30ms", median)
	}
}

func TestIdempotencyKeyMakesOneJob(t *testing.T) {
	s := start(t, options{apis: 2, workers: 1})
	const clients = 20
	request := chat("once", "")
	request.IdempotencyKey = "order-4711"
	ids := make([]string, clients)
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			job, err := s.client().Submit(t.Context(), request)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = job.ID
		})
	}
	group.Wait()
	slices.Sort(ids)
	if distinct := slices.Compact(ids); len(distinct) != 1 {
		t.Fatalf("%d clients with one key made %d jobs, want 1: %v", clients, len(distinct), distinct)
	}
	job := s.wait(&client.Job{ID: ids[0]}, 30*time.Second)
	wantState(t, []*client.Job{job}, client.StateSucceeded)

	again := s.submit(request)
	if again.ID != job.ID || again.State != client.StateSucceeded {
		t.Errorf("the same request later gave job %s, %s; want %s with its answer", again.ID, again.State, job.ID)
	}
	if n := s.upstream.Requests(); n != 1 {
		t.Errorf("the upstream got %d requests, want 1", n)
	}

	other := chat("something else", "")
	other.IdempotencyKey = request.IdempotencyKey
	_, err := s.client().Submit(t.Context(), other)
	var refusal *client.APIError
	if !errors.As(err, &refusal) || refusal.Status != http.StatusUnprocessableEntity || refusal.Code != "idempotency_key_reused" {
		t.Errorf("another body with the key: %v, want 422 idempotency_key_reused", err)
	}
}
