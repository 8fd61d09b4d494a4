package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// keys are all keys in the system's Redis, sorted.
func (s *system) keys() []string {
	s.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	defer rdb.Close()
	keys, err := rdb.Keys(s.t.Context(), "*").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(keys)
	return keys
}

func TestBadRequestsReachNobody(t *testing.T) {
	t.Parallel()             // no figures
	s := start(t, options{}) // without workers: they have keys of their own
	const (
		good    = `"request":{"model":"m","messages":[{"role":"user","content":"x"}]}`
		unknown = "job_00000000000000000000000000000000"
	)
	type request struct {
		method, path string
		header       http.Header
		body         string
	}
	post := func(body string) request { return request{http.MethodPost, "/v1/jobs", nil, body} }
	call := func(method, path string) request { return request{method, path, nil, ""} }
	withKey := func(key ...string) request {
		return request{http.MethodPost, "/v1/jobs", http.Header{"Idempotency-Key": key}, `{"kind":"chat",` + good + `}`}
	}
	tests := []struct {
		name    string
		request request
		status  int
		param   string // the field the answer must name
	}{
		{"no body", post(""), 400, "body"},
		{"no JSON", post(`{"kind":"chat",`), 400, "body"},
		{"no object", post(`[1,2]`), 400, "body"},
		{"null", post(`null`), 400, "body"},
		{"11 MB", post(`{"kind":"chat","request":{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 11_000_000) + `"}]}}`), 413, "body"},
		{"no kind", post(`{` + good + `}`), 400, "kind"},
		{"unknown kind", post(`{"kind":"poem",` + good + `}`), 400, "kind"},
		{"kind is a number", post(`{"kind":1,` + good + `}`), 400, "kind"},
		{"no request", post(`{"kind":"chat"}`), 400, "request"},
		{"request is a text", post(`{"kind":"chat","request":"hello"}`), 400, "request"},
		{"no model", post(`{"kind":"chat","request":{"messages":[{"role":"user","content":"x"}]}}`), 400, "request.model"},
		{"no messages", post(`{"kind":"chat","request":{"model":"m"}}`), 400, "request.messages"},
		{"empty messages", post(`{"kind":"chat","request":{"model":"m","messages":[]}}`), 400, "request.messages"},
		{"message is a text", post(`{"kind":"chat","request":{"model":"m","messages":["x"]}}`), 400, "request.messages[0]"},
		{"no prompt", post(`{"kind":"generate","request":{"model":"m"}}`), 400, "request.prompt"},
		{"no input", post(`{"kind":"embeddings","request":{"model":"m"}}`), 400, "request.input"},
		{"stream", post(`{"kind":"chat","request":{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}}`), 400, "request.stream"},
		{"unknown upstream", post(`{"kind":"chat","upstream":"nowhere",` + good + `}`), 400, "upstream"},
		{"unknown priority", post(`{"kind":"chat","priority":"urgent",` + good + `}`), 400, "priority"},
		{"unknown field", post(`{"kind":"chat","prio":"high",` + good + `}`), 400, "prio"},
		{"delay is a number", post(`{"kind":"chat","delay":5,` + good + `}`), 400, "delay"},
		{"delay is no duration", post(`{"kind":"chat","delay":"soon",` + good + `}`), 400, "delay"},
		{"delay is negative", post(`{"kind":"chat","delay":"-1s",` + good + `}`), 400, "delay"},
		{"run_at is no time", post(`{"kind":"chat","run_at":"tomorrow",` + good + `}`), 400, "run_at"},
		{"delay and run_at", post(`{"kind":"chat","delay":"1s","run_at":"2030-01-31T15:00:00Z",` + good + `}`), 400, "run_at"},
		{"expires_in too short", post(`{"kind":"chat","expires_in":"1ms",` + good + `}`), 400, "expires_in"},
		{"max_attempts is 0", post(`{"kind":"chat","max_attempts":0,` + good + `}`), 400, "max_attempts"},
		{"max_attempts is a fraction", post(`{"kind":"chat","max_attempts":1.5,` + good + `}`), 400, "max_attempts"},
		{"retention too long", post(`{"kind":"chat","retention":"87600h",` + good + `}`), 400, "retention"},
		{"metadata is no map of texts", post(`{"kind":"chat","metadata":{"a":1},` + good + `}`), 400, "metadata"},
		{"empty idempotency key", withKey(""), 400, "Idempotency-Key"},
		{"two idempotency keys", withKey("a", "b"), 400, "Idempotency-Key"},
		{"long idempotency key", withKey(strings.Repeat("k", 300)), 400, "Idempotency-Key"},
		{"wait is no duration", call(http.MethodGet, "/v1/jobs/"+unknown+"?wait=long"), 400, "wait"},
		{"wait is negative", call(http.MethodGet, "/v1/jobs/"+unknown+"?wait=-1s"), 400, "wait"},
		{"unknown job", call(http.MethodGet, "/v1/jobs/"+unknown), 404, "id"},
		{"no job ID", call(http.MethodGet, "/v1/jobs/*"), 404, "id"},
		{"cancel of an unknown job", call(http.MethodPost, "/v1/jobs/"+unknown+"/cancel"), 404, "id"},
		{"retry of an unknown job", call(http.MethodPost, "/v1/jobs/"+unknown+"/retry"), 404, "id"},
		{"delete of an unknown job", call(http.MethodDelete, "/v1/jobs/"+unknown), 404, "id"},
		{"unknown state", call(http.MethodGet, "/v1/jobs?state=lost"), 400, "state"},
		{"unknown kind in a list", call(http.MethodGet, "/v1/jobs?kind=poem"), 400, "kind"},
		{"limit is 0", call(http.MethodGet, "/v1/jobs?limit=0"), 400, "limit"},
		{"no cursor", call(http.MethodGet, "/v1/jobs?after=x"), 400, "after"},
		{"unknown path", call(http.MethodGet, "/v1/nothing"), 404, ""},
		{"wrong method", call(http.MethodPut, "/v1/jobs"), 405, ""},
	}
	before := s.keys()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.request
			status, body := s.in(t).do(r.method, r.path, r.header, strings.NewReader(r.body))
			if status != tt.status {
				t.Fatalf("status %d, want %d: %s", status, tt.status, body)
			}
			if err := checkEnvelope(body, tt.param); err != nil {
				t.Errorf("%v: %s", err, body)
			}
		})
	}
	if after := s.keys(); !slices.Equal(after, before) {
		t.Errorf("a bad request left something in Redis:\n%q, want\n%q", after, before)
	}
	figure(t, "bad_requests_refused", len(tests))
}

// checkEnvelope reports what an OpenAI SDK would miss in an error, or a field that is not named.
func checkEnvelope(body []byte, param string) error {
	var envelope struct {
		Error struct {
			Message, Type, Code string
			Param               *string
		}
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return err
	}
	e := envelope.Error
	if e.Message == "" || e.Type == "" || e.Code == "" {
		return fmt.Errorf("message, type or code is missing")
	}
	if param == "" {
		return nil
	}
	if e.Param == nil || *e.Param != param {
		return fmt.Errorf("param is not %q", param)
	}
	if !strings.HasPrefix(e.Message, param+":") {
		return fmt.Errorf("the message does not name %q", param)
	}
	return nil
}
