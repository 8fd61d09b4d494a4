package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/openai"
)

// jobWith is a good job with one more field, or another value for one.
func jobWith(field string) string {
	return `{"kind":"chat","request":{"model":"m","messages":[{}]},` + field + `}`
}

// Every bad submission is refused with the field at fault, and leaves nothing behind.
func TestBadSubmissions(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.MaxBody = 4096 })
	long := strings.Repeat("x", 600)
	pairs := make([]string, 17)
	for i := range pairs {
		pairs[i] = fmt.Sprintf(`"k%d":"v"`, i)
	}
	tests := []struct {
		name, body  string
		status      int
		code, param string
	}{
		{"no body", "", 400, "missing_body", "body"},
		{"blanks", " \n", 400, "missing_body", "body"},
		{"no JSON", "hello", 400, "invalid_json", "body"},
		{"cut JSON", `{"kind":"chat"`, 400, "invalid_json", "body"},
		{"two objects", `{}{}`, 400, "invalid_json", "body"},
		{"null", "null", 400, "invalid_type", "body"},
		{"a list", "[]", 400, "invalid_type", "body"},
		{"a string", `"chat"`, 400, "invalid_type", "body"},
		{"too large", `{"kind":"` + strings.Repeat("x", 5000) + `"}`, 413, "body_too_large", "body"},
		{"an unknown field", jobWith(`"prioritty":"high"`), 400, "unknown_field", "prioritty"},
		{"a known field in capitals", jobWith(`"Priority":"high"`), 400, "unknown_field", "Priority"},
		{"no kind", `{"request":{}}`, 400, "missing_required_parameter", "kind"},
		{"a null kind", `{"kind":null}`, 400, "missing_required_parameter", "kind"},
		{"an unknown kind", `{"kind":"poem"}`, 400, "invalid_value", "kind"},
		{"a number for a kind", `{"kind":1}`, 400, "invalid_type", "kind"},
		{"an unknown upstream", jobWith(`"upstream":"elsewhere"`), 400, "unknown_upstream", "upstream"},
		{"a number for an upstream", jobWith(`"upstream":1`), 400, "invalid_type", "upstream"},
		{"an unknown priority", jobWith(`"priority":"urgent"`), 400, "invalid_value", "priority"},
		{"a number for a priority", jobWith(`"priority":1`), 400, "invalid_type", "priority"},
		{"no request", `{"kind":"chat"}`, 400, "missing_required_parameter", "request"},
		{"a null request", `{"kind":"chat","request":null}`, 400, "missing_required_parameter", "request"},
		{"text for a request", `{"kind":"chat","request":"hi"}`, 400, "invalid_type", "request"},
		{"no model", `{"kind":"chat","request":{}}`, 400, "missing_required_parameter", "request.model"},
		{"an empty model", `{"kind":"chat","request":{"model":""}}`, 400, "invalid_type", "request.model"},
		{"no messages", `{"kind":"chat","request":{"model":"m"}}`, 400, "missing_required_parameter", "request.messages"},
		{"empty messages", `{"kind":"chat","request":{"model":"m","messages":[]}}`, 400, "empty_array", "request.messages"},
		{"a text for a message", `{"kind":"chat","request":{"model":"m","messages":["hi"]}}`, 400, "invalid_type", "request.messages[0]"},
		{"no prompt", `{"kind":"generate","request":{"model":"m"}}`, 400, "missing_required_parameter", "request.prompt"},
		{"no input", `{"kind":"embeddings","request":{"model":"m"}}`, 400, "missing_required_parameter", "request.input"},
		{"a number for an input", `{"kind":"embeddings","request":{"model":"m","input":1}}`, 400, "invalid_type", "request.input"},
		{"a stream", `{"kind":"chat","request":{"model":"m","messages":[{}],"stream":true}}`, 400, "unsupported_value", "request.stream"},
		{"a number for a delay", jobWith(`"delay":30`), 400, "invalid_type", "delay"},
		{"a word for a delay", jobWith(`"delay":"soon"`), 400, "invalid_duration", "delay"},
		{"a negative delay", jobWith(`"delay":"-1s"`), 400, "out_of_range", "delay"},
		{"a delay of a year", jobWith(`"delay":"8760h"`), 400, "out_of_range", "delay"},
		{"a number for run_at", jobWith(`"run_at":1700000000`), 400, "invalid_type", "run_at"},
		{"run_at without a zone", jobWith(`"run_at":"2030-01-31T15:00:00"`), 400, "invalid_time", "run_at"},
		{"run_at in words", jobWith(`"run_at":"tomorrow"`), 400, "invalid_time", "run_at"},
		{"run_at in a century", jobWith(`"run_at":"2130-01-31T15:00:00Z"`), 400, "out_of_range", "run_at"},
		{"run_at and delay", jobWith(`"run_at":"2020-01-31T15:00:00Z","delay":"1s"`), 400, "conflicting_fields", "run_at"},
		{"expires_in of nothing", jobWith(`"expires_in":"0s"`), 400, "out_of_range", "expires_in"},
		{"expires_in of a year", jobWith(`"expires_in":"8760h"`), 400, "out_of_range", "expires_in"},
		{"a number for expires_in", jobWith(`"expires_in":60`), 400, "invalid_type", "expires_in"},
		{"a retention above the most", jobWith(`"retention":"721h"`), 400, "out_of_range", "retention"},
		{"a retention of nothing", jobWith(`"retention":"1ms"`), 400, "out_of_range", "retention"},
		{"no attempts", jobWith(`"max_attempts":0`), 400, "out_of_range", "max_attempts"},
		{"too many attempts", jobWith(`"max_attempts":1001`), 400, "out_of_range", "max_attempts"},
		{"half an attempt", jobWith(`"max_attempts":1.5`), 400, "invalid_type", "max_attempts"},
		{"attempts as text", jobWith(`"max_attempts":"3"`), 400, "invalid_type", "max_attempts"},
		{"metadata as a list", jobWith(`"metadata":["a"]`), 400, "invalid_type", "metadata"},
		{"metadata with numbers", jobWith(`"metadata":{"a":1}`), 400, "invalid_type", "metadata"},
		{"too much metadata", jobWith(`"metadata":{` + strings.Join(pairs, ",") + `}`), 400, "out_of_range", "metadata"},
		{"a long metadata key", jobWith(`"metadata":{"` + long[:65] + `":"v"}`), 400, "out_of_range", "metadata"},
		{"a long metadata value", jobWith(`"metadata":{"k":"` + long + `"}`), 400, "out_of_range", "metadata"},
		{"an empty metadata key", jobWith(`"metadata":{"":"v"}`), 400, "out_of_range", "metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := envelope(t, b.do("POST", "/v1/jobs", tt.body), tt.status, tt.code)
			require.NotNil(t, e.Param)
			require.Equal(t, tt.param, *e.Param)
			require.Equal(t, "invalid_request_error", e.Type)
			require.True(t, strings.HasPrefix(e.Message, tt.param+": "), e.Message)
		})
	}
	require.Empty(t, b.keys(t), "nothing was kept")
}

// A reply is not as long as the request that was wrong.
func TestAnErrorRepeatsLittle(t *testing.T) {
	b := newBundle(t, nil)
	long := strings.Repeat("ü", 1<<20)
	for _, body := range []string{jobWith(`"` + long + `":1`), jobWith(`"delay":"` + long + `"`), jobWith(`"upstream":"` + long + `"`), `{"kind":"` + long + `"}`} {
		w := b.do("POST", "/v1/jobs", body)
		require.Equal(t, 400, w.Code)
		require.Less(t, w.Body.Len(), 3000)
	}
}

func TestBadIdempotencyKeys(t *testing.T) {
	b := newBundle(t, nil)
	for _, headers := range [][]string{{"Idempotency-Key: "}, {"Idempotency-Key: " + strings.Repeat("x", 256)}, {"Idempotency-Key: a", "Idempotency-Key: b"}, {"Idempotency-Key: a\tb"}, {"Idempotency-Key: a\x7fb"}} {
		e := envelope(t, b.do("POST", "/v1/jobs", hello, headers...), 400, "invalid_value")
		require.Equal(t, "Idempotency-Key", *e.Param)
	}
	require.Empty(t, b.keys(t))
}

func TestAnIdempotencyKeyMakesOneJob(t *testing.T) {
	b := newBundle(t, nil)
	first := b.do("POST", "/v1/jobs", hello, "Idempotency-Key: once")
	require.Equal(t, 202, first.Code)
	require.Empty(t, first.Header().Get("Idempotent-Replayed"))
	id := fieldOf(t, first, "id")
	again := b.do("POST", "/v1/jobs", hello, "Idempotency-Key: once")
	require.Equal(t, 202, again.Code)
	require.Equal(t, "true", again.Header().Get("Idempotent-Replayed"))
	require.Equal(t, id, fieldOf(t, again, "id"))
	e := envelope(t, b.do("POST", "/v1/jobs", hello+" ", "Idempotency-Key: once"), 422, "idempotency_key_reused")
	require.Equal(t, "Idempotency-Key", *e.Param)
	require.Contains(t, e.Message, id)
	require.NotEqual(t, id, fieldOf(t, b.do("POST", "/v1/jobs", hello, "Idempotency-Key: twice"), "id"))
	require.NotEqual(t, id, fieldOf(t, b.do("POST", "/v1/jobs", hello), "id"))
}

func TestSubmitAnswersWithTheJob(t *testing.T) {
	b := newBundle(t, nil)
	w := b.do("POST", "/v1/jobs", `{"kind":"embeddings","request":{"model":"<m>&","input":"x"},"upstream":"other","priority":"high","delay":"1h",
		"expires_in":"2h","max_attempts":7,"retention":"3h","metadata":{"team":"a"}}`)
	require.Equal(t, 202, w.Code)
	id := fieldOf(t, w, "id")
	require.Equal(t, "/v1/jobs/"+id, w.Header().Get("Location"))
	require.Equal(t, id, w.Header().Get("X-Ferry-Job-Id"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Contains(t, w.Body.String(), `"model":"<m>&"`, "no HTML escapes")
	var job struct {
		Object, Kind, State, Upstream, Priority string
		MaxAttempts                             int       `json:"max_attempts"`
		CreatedAt                               time.Time `json:"created_at"`
		RunAt                                   time.Time `json:"run_at"`
		ExpiresAt                               time.Time `json:"expires_at"`
		Metadata                                map[string]string
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &job))
	require.Equal(t, []string{"job", "embeddings", "queued", "other", "high"}, []string{job.Object, job.Kind, job.State, job.Upstream, job.Priority})
	require.Equal(t, 7, job.MaxAttempts)
	require.WithinDuration(t, job.CreatedAt.Add(time.Hour), job.RunAt, time.Second)
	require.WithinDuration(t, job.RunAt.Add(2*time.Hour), job.ExpiresAt, time.Second)
	require.Equal(t, map[string]string{"team": "a"}, job.Metadata)
	require.NotContains(t, w.Body.String(), `"input"`, "the request is not repeated")
	require.Equal(t, "queued", fieldOf(t, b.do("GET", "/v1/jobs/"+id, ""), "state"))
}

// What stands in a submission as null is as good as absent.
func TestNullIsAbsent(t *testing.T) {
	b := newBundle(t, nil)
	w := b.do("POST", "/v1/jobs", jobWith(`"upstream":null,"priority":null,"delay":null,"run_at":"2020-01-01T00:00:00Z","expires_in":null,"max_attempts":null,"retention":null,"metadata":null`))
	require.Equal(t, 202, w.Code, w.Body)
	require.Equal(t, "main", fieldOf(t, w, "upstream"), "the first is the default")
	require.Equal(t, "default", fieldOf(t, w, "priority"))
	require.Empty(t, fieldOf(t, w, "run_at"), "a time that is over is now")
}

func TestUnknownJobs(t *testing.T) {
	b := newBundle(t, nil)
	none := "job_" + strings.Repeat("0", 32)
	for _, line := range []string{"GET /v1/jobs/" + none, "GET /v1/jobs/" + none + "?wait=1s", "DELETE /v1/jobs/" + none, "POST /v1/jobs/" + none + "/cancel", "POST /v1/jobs/" + none + "/retry", "GET /v1/jobs/x", "GET /v1/jobs/%2A?wait=1s"} {
		method, target, _ := strings.Cut(line, " ")
		e := envelope(t, b.do(method, target, ""), 404, "job_not_found")
		require.Equal(t, "id", *e.Param)
	}
}

func TestWaitIsChecked(t *testing.T) {
	b := newBundle(t, func(c *api.Config) { c.MaxWait = time.Second })
	id := b.submit(t, hello)
	for wait, code := range map[string]string{"30": "invalid_duration", "soon": "invalid_duration", "-1s": "out_of_range", "9999999h": "invalid_duration"} {
		e := envelope(t, b.do("GET", "/v1/jobs/"+id+"?wait="+wait, ""), 400, code)
		require.Equal(t, "wait", *e.Param)
	}
	for _, wait := range []string{"0s", "1ms", "", "1h"} { // an hour is cut to max_wait
		w := b.do("GET", "/v1/jobs/"+id+"?wait="+wait, "")
		require.Equal(t, 200, w.Code)
		require.Equal(t, "queued", fieldOf(t, w, "state"), "a wait that is over answers with the job as it stands")
	}
}

func TestETag(t *testing.T) {
	b := newBundle(t, nil)
	id := b.submit(t, hello)
	etag := b.do("GET", "/v1/jobs/"+id, "").Header().Get("ETag")
	require.Regexp(t, `^"[0-9a-z]+"$`, etag)
	for header, status := range map[string]int{etag: 304, "W/" + etag: 304, `"other", ` + etag: 304, "*": 304, `"other"`: 200, "": 200, strings.Trim(etag, `"`): 200} {
		w := b.do("GET", "/v1/jobs/"+id, "", "If-None-Match: "+header)
		require.Equal(t, status, w.Code, header)
		require.Equal(t, etag, w.Header().Get("ETag"))
		require.Equal(t, status == 304, w.Body.Len() == 0)
	}
	w := b.do("POST", "/v1/jobs/"+id+"/cancel", "", "If-None-Match: *")
	require.Equal(t, 200, w.Code, "a change is answered in full")
	require.NotEqual(t, etag, w.Header().Get("ETag"))
	require.Equal(t, 200, b.do("GET", "/v1/jobs/"+id, "", "If-None-Match: "+etag).Code)
}

func TestWhatAStateForbids(t *testing.T) {
	b := newBundle(t, nil)
	id := b.submit(t, hello)
	steps := []struct {
		line   string
		status int
		code   string // of an error
		state  string // of a job
		fix    string
	}{
		{"POST /retry", 409, "job_queued", "", "cancel it first"},
		{"DELETE ", 409, "job_queued", "", "cancel it first"},
		{"POST /cancel", 200, "", "canceled", ""},
		{"POST /cancel", 409, "job_canceled", "", "it has ended"},
		{"POST /retry", 200, "", "queued", ""},
		{"POST /cancel", 200, "", "canceled", ""},
		{"DELETE ", 204, "", "", ""},
		{"DELETE ", 404, "job_not_found", "", ""},
	}
	for i, step := range steps {
		method, suffix, _ := strings.Cut(step.line, " ")
		w := b.do(method, "/v1/jobs/"+id+suffix, "")
		require.Equal(t, step.status, w.Code, "step %d: %s", i, w.Body)
		if step.code != "" {
			require.Contains(t, envelope(t, w, step.status, step.code).Message, step.fix)
		}
		if step.state != "" {
			require.Equal(t, step.state, fieldOf(t, w, "state"))
		}
	}
}

// page is a reply of GET /v1/jobs.
type page struct {
	Object  string
	Data    []struct{ ID, State, Kind, Upstream string }
	HasMore bool `json:"has_more"`
	Next    string
}

func (b *bundle) list(t *testing.T, query string) page {
	t.Helper()
	w := b.do(http.MethodGet, "/v1/jobs?"+query, "")
	require.Equal(t, 200, w.Code, w.Body)
	var p page
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	require.Equal(t, "list", p.Object)
	return p
}

func TestList(t *testing.T) {
	b := newBundle(t, nil)
	require.Contains(t, b.do("GET", "/v1/jobs", "").Body.String(), `"data":[]`, "an empty list is a list")
	var ids []string // newest first
	for i := range 5 {
		body := hello
		if i == 3 {
			body = `{"kind":"generate","upstream":"other","request":{"model":"m","prompt":"x"}}`
		}
		ids = append([]string{b.submit(t, body)}, ids...)
	}
	require.Equal(t, 200, b.do("POST", "/v1/jobs/"+ids[4]+"/cancel", "").Code)
	tests := []struct {
		query string
		want  []string
	}{
		{"", ids},
		{"state=queued", ids[:4]},
		{"state=canceled", ids[4:]},
		{"state=failed", nil},
		{"kind=generate", ids[1:2]},
		{"upstream=other", ids[1:2]},
		{"upstream=unknown", nil},
		{"kind=chat&state=queued&limit=100", []string{ids[0], ids[2], ids[3]}},
	}
	for _, tt := range tests {
		var got []string
		for _, job := range b.list(t, tt.query).Data {
			got = append(got, job.ID)
		}
		require.Equal(t, tt.want, got, tt.query)
	}
	var walked []string
	for next := ""; ; {
		p := b.list(t, "limit=2&after="+next)
		require.LessOrEqual(t, len(p.Data), 2)
		for _, job := range p.Data {
			walked = append(walked, job.ID)
		}
		require.Equal(t, p.HasMore, p.Next != "")
		if next = p.Next; next == "" {
			break
		}
	}
	require.Equal(t, ids, walked)
}

func TestBadLists(t *testing.T) {
	b := newBundle(t, nil)
	for query, want := range map[string][2]string{
		"state=open": {"invalid_value", "state"}, "state=QUEUED": {"invalid_value", "state"}, "kind=poem": {"invalid_value", "kind"},
		"limit=0": {"out_of_range", "limit"}, "limit=101": {"out_of_range", "limit"}, "limit=-1": {"out_of_range", "limit"}, "limit=ten": {"out_of_range", "limit"},
		"after=x": {"invalid_cursor", "after"}, "after=1.job_x": {"invalid_cursor", "after"}, "after=%7B%7D": {"invalid_cursor", "after"},
	} {
		e := envelope(t, b.do("GET", "/v1/jobs?"+query, ""), 400, want[0])
		require.Equal(t, want[1], *e.Param)
	}
}

// An API that has not got the new key yet, or has lost the old one, says so instead of failing on everything.
func TestAJobSealedWithAMissingKey(t *testing.T) {
	b := newBundle(t, nil)
	id := b.submit(t, hello)
	keys, err := b.rdb.Keys(t.Context(), "ferry:*:job:"+id).Result()
	require.NoError(t, err)
	blob := "\x02\x02k9" + strings.Repeat("x", 40)
	require.NoError(t, b.rdb.HSet(t.Context(), keys[0], "state", "succeeded", "result", blob, "body", blob, "error", blob).Err())
	for _, target := range []string{"/v1/jobs/" + id, "/v1/jobs/" + id + "?wait=1s"} {
		w := b.do(http.MethodGet, target, "")
		require.Equal(t, http.StatusInternalServerError, w.Code)
		var e openai.Envelope
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &e))
		require.Equal(t, "encryption_key_missing", *e.Error.Code)
		require.Contains(t, e.Error.Message, `with the key "k9", which this server does not have; add it to encryption.keys`)
	}
	require.Contains(t, b.log.String(), `there is no key \"k9\"`)
	list := b.do(http.MethodGet, "/v1/jobs", "")
	require.Equal(t, http.StatusOK, list.Code, "a list shows what it can")
	require.Contains(t, list.Body.String(), id)
	require.Equal(t, http.StatusNoContent, b.do(http.MethodDelete, "/v1/jobs/"+id, "").Code)
}
