package httpx_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// stub answers at once and allocates a response, a body and nothing else.
type stub struct{ header http.Header }

func (s stub) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: s.header, ContentLength: 2, Body: io.NopCloser(bytes.NewReader([]byte("{}")))}, nil
}

func (s stub) transport(http.RoundTripper) http.RoundTripper { return s }

// The price of a call with everything on. tests/bench compares it with net/http and others; here it must not grow.
func TestDo_allocates_little(t *testing.T) {
	if raceFactor > 1 {
		t.Skip("the race detector changes what is allocated")
	}
	c := newClient(t, httpx.Config{Breaker: passBreaker{}, Transport: stub{http.Header{}}.transport})
	policy := httpx.Presets()["chat"]
	header := http.Header{"Content-Type": {"application/json"}}
	for name, tt := range map[string]struct {
		req  httpx.Request
		want float64
	}{
		"plain":  {httpx.Request{URL: post.URL, Header: header, Body: post.Body}, 22},
		"policy": {httpx.Request{URL: post.URL, Header: header, Body: post.Body, Policy: &policy}, 22},
		"key":    {httpx.Request{URL: post.URL, Header: header, Body: post.Body, IdempotencyKey: "job_1"}, 25},
	} {
		got := testing.AllocsPerRun(1000, func() {
			if _, err := c.Do(t.Context(), tt.req); err != nil {
				t.Fatal(err)
			}
		})
		if got > tt.want {
			t.Errorf("%s: %v allocations per call, want at most %v", name, got, tt.want)
		}
	}
}

type passBreaker struct{}

func (passBreaker) Run(work func() error) error { return work() }
