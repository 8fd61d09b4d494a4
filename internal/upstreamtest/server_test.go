package upstreamtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { // the default client's idle connections are ours to close
		http.DefaultClient.CloseIdleConnections()
	}))
}

const (
	streamed = `{"model":"m","stream":true,"messages":[{"role":"user","content":"What is a queue?"}]}`
	always   = "X-Simulate"
)

// Each kind of fault, as a plain http.Client meets it.
func TestFaults(t *testing.T) {
	is := func(target error) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			t.Helper()
			if !errors.Is(r.err, target) {
				t.Errorf("error is %v, want %v; status %d, body %q", r.err, target, r.status, r.body)
			}
		}
	}
	tests := []struct {
		name   string
		faults string
		body   string // hello unless set
		status int    // as the journal has it; 0 for none
		check  func(*testing.T, reply)
	}{
		{name: "a status comes with an envelope", faults: "500=1", status: 500, check: func(t *testing.T, r reply) {
			if !strings.Contains(r.body, `"type": "server_error"`) || r.header.Get("Retry-After") != "" {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "a status beats the stream", faults: "503=1", body: streamed, status: 503, check: func(t *testing.T, r reply) {
			if got := r.header.Get("Content-Type"); got != "application/json" {
				t.Errorf("content type is %s", got)
			}
		}},
		{name: "503 carries the hint it is given", faults: "503=1,retry_after=1500ms", status: 503, check: func(t *testing.T, r reply) {
			if s, ms := r.header.Get("Retry-After"), r.header.Get("Retry-After-Ms"); s != "2" || ms != "1500" {
				t.Errorf("hints are %q s and %q ms", s, ms)
			}
		}},
		{name: "429 always carries hints", faults: "429=1", status: 429, check: func(t *testing.T, r reply) {
			if !strings.Contains(r.body, "rate_limit_exceeded") || r.header.Get("Retry-After") != "1" ||
				r.header.Get("X-Ratelimit-Reset-Requests") != "1s" || r.header.Get("X-Ratelimit-Remaining-Requests") != "0" {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "quota carries no hint", faults: "quota=1,retry_after=5s", status: 429, check: func(t *testing.T, r reply) {
			if strings.Count(r.body, "insufficient_quota") != 2 || r.header.Get("Retry-After") != "" {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "html is a proxy's page", faults: "html=1", status: 502, check: func(t *testing.T, r reply) {
			if r.header.Get("Content-Type") != "text/html" || !strings.HasPrefix(r.body, "<html>") {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "garbage is a 200 without sense", faults: "garbage=1", status: 200, check: func(t *testing.T, r reply) {
			if r.err != nil || r.status != 200 || json.Valid([]byte(r.body)) {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "garbage in a stream is one event", faults: "garbage=1", body: streamed, status: 200, check: func(t *testing.T, r reply) {
			invalid := 0
			for event := range strings.SplitSeq(strings.TrimSuffix(r.body, "data: [DONE]\n\n"), "\n\n") {
				if data, ok := strings.CutPrefix(event, "data: "); ok && !json.Valid([]byte(data)) {
					invalid++
				}
			}
			if r.err != nil || invalid != 1 {
				t.Errorf("%d invalid events in %q, %v", invalid, r.body, r.err)
			}
		}},
		{name: "cut breaks a body off", faults: "cut=1", status: 200, check: is(io.ErrUnexpectedEOF)},
		{name: "cut breaks a stream off", faults: "cut=1", body: streamed, status: 200, check: is(io.ErrUnexpectedEOF)},
		{name: "cut_stream breaks a body off", faults: "cut_stream=1", status: 200, check: is(io.ErrUnexpectedEOF)},
		{name: "cut_stream ends a stream cleanly and early", faults: "cut_stream=1", body: streamed, status: 200, check: func(t *testing.T, r reply) {
			if r.err != nil || !strings.HasSuffix(r.body, "}\n\n") || strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, `"stop"`) {
				t.Errorf("stream is %q, %v", r.body, r.err)
			}
		}},
		{name: "reset is a TCP reset", faults: "reset=1", check: is(syscall.ECONNRESET)},
		{name: "eof is a closed connection", faults: "eof=1", check: is(io.EOF)},
		{name: "timeout is silence", faults: "timeout=1", check: is(context.DeadlineExceeded)},
		{name: "hang is the same", faults: "hang=1", check: is(context.DeadlineExceeded)},
		{name: "slow_body arrives whole", faults: "slow_body=1,slow_for=50ms", status: 200, check: func(t *testing.T, r reply) {
			if !json.Valid([]byte(r.body)) {
				t.Errorf("answer is %+v", r)
			}
		}},
		{name: "slow_body slows a stream", faults: "slow_body=1,slow_for=50ms", body: streamed, status: 200, check: func(t *testing.T, r reply) {
			if !strings.HasSuffix(r.body, "[DONE]\n\n") {
				t.Errorf("answer is %+v", r)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := upstreamtest.Start(t, upstreamtest.Config{Faults: upstreamtest.MustParseFaults(tt.faults)})
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if strings.HasPrefix(tt.faults, "timeout") || strings.HasPrefix(tt.faults, "hang") {
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			}
			defer cancel()
			body := tt.body
			if body == "" {
				body = hello
			}
			r := post(ctx, up.URL+chat, body)
			tt.check(t, r)
			if r.err == nil && r.status != tt.status {
				t.Errorf("status is %d, want %d", r.status, tt.status)
			}
			record := settled(t, up)[0]
			kind, _, _ := strings.Cut(strings.Replace(tt.faults, "hang", "timeout", 1), "=")
			if record.Fault != upstreamtest.Kind(kind) || record.Status != tt.status || record.Attempt != 1 {
				t.Errorf("journal has fault %q, status %d, attempt %d", record.Fault, record.Status, record.Attempt)
			}
		})
	}
}

// settled returns the journal once no request is in flight: a client may know of
// its answer before the server has booked it.
func settled(t *testing.T, up *upstreamtest.Server) []upstreamtest.Record {
	t.Helper()
	eventually(t, func() bool { return up.InFlight() == 0 })
	return up.Journal()
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("condition not met within 5s")
		}
	}
}

func TestHangEndsAtItsBound(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{Faults: upstreamtest.MustParseFaults("timeout=1"), HangFor: time.Millisecond})
	if r := post(t.Context(), up.URL+chat, hello); !errors.Is(r.err, io.EOF) {
		t.Errorf("answer is %+v, want EOF", r)
	}
}

// The times are exact in a bubble, where nothing but the waits takes any.
func TestWaits(t *testing.T) {
	tests := []struct {
		name     string
		cfg      upstreamtest.Config
		body     string
		min, max time.Duration
	}{
		{name: "none by default", body: hello},
		{name: "latency", cfg: faulty("latency=3s"), body: hello, min: 3 * time.Second, max: 3 * time.Second},
		{name: "latency before a fault", cfg: faulty("503=1,latency=3s"), body: hello, min: 3 * time.Second, max: 3 * time.Second},
		{name: "jitter comes on top", cfg: faulty("latency=3s,jitter=1s"), body: hello, min: 3*time.Second + 1, max: 4*time.Second - 1},
		{name: "a slow body takes slow_for", cfg: faulty("slow_body=1,slow_for=20s"), body: hello, min: 20 * time.Second, max: 20 * time.Second},
		{name: "a slow body takes 5s by default", cfg: faulty("slow_body=1"), body: hello, min: 5 * time.Second, max: 5 * time.Second},
		{name: "tokens at a pace", cfg: upstreamtest.Config{TokensPerSecond: 2}, body: hello, min: 9 * time.Second, max: 15 * time.Second},
		{name: "streamed tokens at a pace", cfg: upstreamtest.Config{TokensPerSecond: 2}, body: streamed, min: 9 * time.Second, max: 15 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				w := httptest.NewRecorder()
				upstreamtest.New(tt.cfg).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", chat, strings.NewReader(tt.body)))
				if took := time.Since(begin); took < tt.min || took > tt.max {
					t.Errorf("took %s, want %s to %s", took, tt.min, tt.max)
				}
			})
		})
	}
}

func faulty(faults string) upstreamtest.Config {
	return upstreamtest.Config{Faults: upstreamtest.MustParseFaults(faults)}
}

func TestCountedFaultsAreByJob(t *testing.T) {
	up := upstreamtest.Start(t, faulty("503*2,429*1"))
	statuses := func(n int, headers ...string) []int {
		var got []int
		for range n {
			got = append(got, post(t.Context(), up.URL+chat, hello, headers...).status)
		}
		return got
	}
	for _, key := range []string{"job_a", "job_b"} {
		if got := statuses(5, "Idempotency-Key", key); !slices.Equal(got, []int{503, 503, 429, 200, 200}) {
			t.Errorf("%s met %v", key, got)
		}
	}
	if got := statuses(4); !slices.Equal(got, []int{503, 503, 429, 200}) {
		t.Errorf("equal requests without a key met %v", got)
	}
	settled(t, up)
	if got, want := up.Tally("job_a"), (upstreamtest.Tally{Requests: 5, Answers: 2}); got != want {
		t.Errorf("tally is %+v, want %+v", got, want)
	}
	if got := up.Tally("job_c"); got != (upstreamtest.Tally{}) {
		t.Errorf("tally of an unknown job is %+v", got)
	}
	if got := up.Tallies(); len(got) != 3 || got["job_b"].Requests != 5 {
		t.Errorf("tallies are %+v", got)
	}
}

func TestRequestsSimulateForThemselves(t *testing.T) {
	up := upstreamtest.Start(t, faulty("500=1"))
	field := func(spec string) string { return strings.Replace(hello, "{", `{"simulate":"`+spec+`",`, 1) }
	tests := []struct {
		name, body string
		headers    []string
		status     int
	}{
		{name: "the server's faults without a wish", body: hello, status: 500},
		{name: "the field beats the server", body: field("418=1"), status: 418},
		{name: "an empty field wants no fault", body: field(""), status: 200},
		{name: "the header beats the field", body: field("418=1"), headers: []string{always, "422=1"}, status: 422},
		{name: "an empty header wants no fault", body: field("418=1"), headers: []string{always, ""}, status: 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := post(t.Context(), up.URL+chat, tt.body, tt.headers...); r.status != tt.status {
				t.Errorf("status is %d, want %d: %s%v", r.status, tt.status, r.body, r.err)
			}
		})
	}
}

func TestScriptComesFirstAndInOrder(t *testing.T) {
	up := upstreamtest.Start(t, faulty("500=1"))
	up.Script(
		upstreamtest.Step{},
		upstreamtest.Step{Fault: upstreamtest.Status(429), RetryAfter: 7 * time.Second},
		upstreamtest.Step{Status: 299, Header: http.Header{"X-Mine": {"yes"}, "content-type": {"text/plain"}}, Body: "mine"},
	)
	up.Script(upstreamtest.Step{Fault: upstreamtest.Garbage})
	if r := send(t.Context(), http.DefaultClient, "GET", up.URL+"/v1/models", ""); r.status != 500 {
		t.Errorf("a GET took a step: %+v", r)
	}
	if r := post(t.Context(), up.URL+chat, hello, always, "500=1"); r.status != 200 {
		t.Errorf("first answer is %+v", r)
	}
	if r := post(t.Context(), up.URL+chat, hello); r.status != 429 || r.header.Get("Retry-After") != "7" {
		t.Errorf("second answer is %+v", r)
	}
	if r := post(t.Context(), up.URL+chat, hello); r.status != 299 || r.header.Get("X-Mine") != "yes" || r.body != "mine" ||
		r.header.Get("Content-Type") != "text/plain" {
		t.Errorf("third answer is %+v", r)
	}
	if r := post(t.Context(), up.URL+chat, hello); r.status != 200 || json.Valid([]byte(r.body)) {
		t.Errorf("fourth answer is %+v", r)
	}
	if r := post(t.Context(), up.URL+chat, hello); r.status != 500 {
		t.Errorf("answer after the script is %+v", r)
	}
}

func TestEqualSeedsMeetEqualFaults(t *testing.T) {
	const n = 2000
	run := func(seed uint64) string {
		up := upstreamtest.New(upstreamtest.Config{Seed: seed, Faults: upstreamtest.MustParseFaults("503=0.3,429=0.1"), KeepJournal: n})
		for range n {
			up.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", chat, strings.NewReader(hello)))
		}
		var b strings.Builder
		for _, r := range up.Journal() {
			fmt.Fprintf(&b, "[%d]", r.Status)
		}
		return b.String()
	}
	first := run(1)
	if again := run(1); again != first {
		t.Error("one seed met different faults")
	}
	if other := run(2); other == first {
		t.Error("two seeds met the same faults")
	}
	for status, share := range map[string]float64{"503": 0.3, "429": 0.1, "200": 0.6} {
		if got := float64(strings.Count(first, status)) / n; got < share-0.04 || got > share+0.04 {
			t.Errorf("share of %s is %v, want about %v", status, got, share)
		}
	}
}

func TestDownResetsEverythingUntilUp(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if r := post(t.Context(), up.URL+chat, hello, always, "latency=1h"); !errors.Is(r.err, syscall.ECONNRESET) {
			t.Errorf("a request in flight got %+v", r)
		}
	})
	body := strings.Replace(streamed, "{", `{"simulate":"slow_body=1,slow_for=10h",`, 1)
	stream, err := http.Post(up.URL+chat, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	eventually(t, func() bool { return up.InFlight() == 2 })
	up.Down()
	up.Down()
	wg.Wait()
	if _, err := io.ReadAll(stream.Body); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stream in flight ended with %v", err)
	}
	if r := post(t.Context(), up.URL+chat, hello); r.err == nil {
		t.Errorf("a request while down got %+v", r)
	}
	if up.Requests() != 2 || up.Refused() == 0 {
		t.Errorf("%d requests, %d refused", up.Requests(), up.Refused())
	}
	up.Up()
	if r := post(t.Context(), up.URL+chat, hello); r.status != 200 {
		t.Errorf("a request after Up got %+v", r)
	}
}

func TestDownWorksWithoutAttach(t *testing.T) {
	up := upstreamtest.New(upstreamtest.Config{})
	ts := httptest.NewServer(up)
	defer ts.Close()
	up.Down()
	if r := post(t.Context(), ts.URL+chat, hello); !errors.Is(r.err, syscall.ECONNRESET) {
		t.Errorf("a request while down got %+v", r)
	}
	if up.Requests() != 0 || up.Refused() != 1 {
		t.Errorf("%d requests, %d refused", up.Requests(), up.Refused())
	}
}

func TestJournal(t *testing.T) {
	up := upstreamtest.Start(t, upstreamtest.Config{KeepJournal: 3})
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	for i := range 5 {
		body := strings.Replace(hello, "queue", strconv.Itoa(i), 1)
		if r := send(t.Context(), client, "POST", up.URL+chat, body, "Idempotency-Key", "job_"+strconv.Itoa(i)); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	var keys []string
	for _, r := range settled(t, up) {
		keys = append(keys, r.Key)
		if r.Method != "POST" || r.Path != chat || r.Status != 200 || r.Fault != upstreamtest.None || !r.Reused ||
			!strings.Contains(string(r.Body), "What is a "+r.Key[4:]) || r.Header.Get("Idempotency-Key") != r.Key ||
			r.Time.IsZero() || r.Duration <= 0 {
			t.Errorf("record is %+v", r)
		}
	}
	if !slices.Equal(keys, []string{"job_2", "job_3", "job_4"}) {
		t.Errorf("journal keeps %v, want the latest three, oldest first", keys)
	}
	if r := send(t.Context(), http.DefaultClient, "POST", up.URL+chat, hello); r.status != 200 || settled(t, up)[2].Reused {
		t.Error("a new connection counts as reused")
	}

	up.SetFaults(upstreamtest.MustParseFaults("500=1"))
	up.Script(upstreamtest.Step{Fault: upstreamtest.Reset})
	up.Reset()
	if r := post(t.Context(), up.URL+chat, hello); r.status != 200 {
		t.Errorf("after Reset: %+v", r)
	}
	if len(settled(t, up)) != 1 || up.Requests() != 1 || up.MaxInFlight() != 1 || up.Tally("job_0").Requests != 0 {
		t.Errorf("Reset left %d records, %d requests", len(up.Journal()), up.Requests())
	}
}

func TestServerConcurrentSafe(t *testing.T) {
	const clients, each = 8, 50
	up := upstreamtest.Start(t, upstreamtest.Config{KeepJournal: 16})
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				r := post(t.Context(), up.URL+chat, hello, "Idempotency-Key", fmt.Sprintf("job_%d_%d", c, i), always, "503*1,cut_stream=0.1")
				if r.err == nil && r.status != 503 {
					t.Errorf("%+v", r)
				}
				_, _, _ = up.Journal(), up.Tallies(), up.MaxInFlight()
			}
		})
	}
	wg.Wait()
	settled(t, up)
	if got := up.Requests(); got != clients*each {
		t.Errorf("%d requests, want %d", got, clients*each)
	}
	if got := up.MaxInFlight(); got < 1 || got > clients {
		t.Errorf("%d at once, with %d clients", got, clients)
	}
}

func TestLogHasOneLinePerRequest(t *testing.T) {
	var log bytes.Buffer
	up := upstreamtest.New(upstreamtest.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r := httptest.NewRequestWithContext(t.Context(), "POST", chat, strings.NewReader(hello))
	r.Header.Set("Idempotency-Key", "job_a")
	r.Header.Set(always, "503*1")
	up.ServeHTTP(httptest.NewRecorder(), r)
	line := log.String()
	if strings.Count(line, "\n") != 1 || !strings.Contains(line, "path="+chat+" key=job_a attempt=1 status=503 fault=503 ") {
		t.Errorf("log is %q", line)
	}
}
