package httpx_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// conformance holds the retry rules of the OpenAI SDKs, as read in their sources (openai-python 000f030
// src/openai/_base_client.py, openai-node 0064618 src/client.ts, openai-go 015dc5e internal/requestconfig), and what this
// package does. The table in docs/httpx.md is written from it. A step gives the first answer; the second one is a 200.
var conformance = []struct {
	rule               string
	python, node, goes string // "retry", "no", or the wait
	ours               string // requests arrive at these times, or how the call ends
	why                string // where ours differs
	step               step
}{
	{"408", "retry", "retry", "retry", "[0s 1s]", "", step{status: 408}},
	{"409", "retry", "retry", "retry", "[0s 1s]", "", step{status: 409}},
	{"429", "retry", "retry", "retry", "[0s 1s]", "", step{status: 429}},
	{"500", "retry", "retry", "retry", "[0s 1s]", "", step{status: 500}},
	{"502", "retry", "retry", "retry", "[0s 1s]", "", step{status: 502}},
	{"503", "retry", "retry", "retry", "[0s 1s]", "", step{status: 503}},
	{"504", "retry", "retry", "retry", "[0s 1s]", "", step{status: 504}},
	{"507", "retry", "retry", "retry", "[0s 1s]", "", step{status: 507}},
	{"529", "retry", "retry", "retry", "[0s 1s]", "", step{status: 529}},
	{"connection error", "retry", "retry", "retry", "[0s 1s]", "", step{err: http.ErrHandlerTimeout}},
	{"timeout", "retry", "retry", "no", "[0s 3s]", "openai-go ends the call when an attempt runs into its RequestTimeout", step{after: time.Hour}},
	{"400", "no", "no", "no", "permanent", "", step{status: 400}},
	{"401", "no", "no", "no", "permanent", "", step{status: 401}},
	{"404", "no", "no", "no", "permanent", "", step{status: 404}},
	{"422", "no", "no", "no", "permanent", "", step{status: 422}},
	{"425", "no", "no", "no", "[0s 1s]", "RFC 8470 §5.2 lets clients repeat it", step{status: 425}},
	{"501", "retry", "retry", "retry", "permanent", "it says that a repeat cannot help", step{status: 501}},
	{"505", "retry", "retry", "retry", "permanent", "it says that a repeat cannot help", step{status: 505}},
	{"x-should-retry: true on 400", "retry", "retry", "retry", "[0s 1s]", "", step{status: 400, header: "x-should-retry: true"}},
	{"x-should-retry: false on 500", "no", "no", "no", "permanent", "", step{status: 500, header: "x-should-retry: false"}},
	{"x-should-retry: maybe on 500", "retry", "retry", "retry", "[0s 1s]", "", step{status: 500, header: "x-should-retry: maybe"}},
	{"retry-after-ms: 2500", "2.5s", "2.5s", "2.5s", "[0s 2.5s]", "", step{status: 429, header: "retry-after-ms: 2500"}},
	{"retry-after: 3", "3s", "3s", "3s", "[0s 3s]", "", step{status: 429, header: "Retry-After: 3"}},
	{"retry-after: 1.5", "1.5s", "1.5s", "1.5s", "[0s 1.5s]", "", step{status: 429, header: "Retry-After: 1.5"}},
	{"retry-after: a date 4 s ahead", "4s", "4s", "4s", "[0s 4s]", "", step{status: 429, header: "Retry-After: Sat, 01 Jan 2000 00:00:04 GMT"}},
	{"retry-after-ms over retry-after", "2s", "2s", "2s", "[0s 2s]", "", step{status: 429, header: "retry-after-ms: 2000\nRetry-After: 9"}},
	{"unreadable retry-after-ms, good retry-after", "2s", "2s", "2s", "[0s 2s]", "", step{status: 429, header: "retry-after-ms: soon\nRetry-After: 2"}},
	{"retry-after: 0.1, below the backoff", "0.1s", "0.1s", "0.1s", "[0s 1s]", "a hint is a lower bound, not an order to hurry", step{status: 429, header: "Retry-After: 0.1"}},
	{"retry-after: -5", "backoff", "at once", "at once", "[0s 1s]", "never below the backoff", step{status: 429, header: "Retry-After: -5"}},
	{"retry-after: NaN", "backoff", "at once", "at once", "[0s 1s]", "unreadable is no hint", step{status: 429, header: "Retry-After: NaN"}},
	{"retry-after: soon", "backoff", "at once", "backoff", "[0s 1s]", "unreadable is no hint", step{status: 429, header: "Retry-After: soon"}},
	{"retry-after: 90", "90s", "90s", "90s", "handed back: 1m30s", "longer than MaxInline: the queue waits, not the worker", step{status: 429, header: "Retry-After: 90"}},
	{"retry-after: 1000000000", "no", "at once", "31 years", "handed back: 1h0m0s", "capped at MaxHint (Node's timer overflows)", step{status: 429, header: "Retry-After: 1000000000"}},
}

func TestConformance_with_the_OpenAI_SDKs(t *testing.T) {
	for _, tt := range conformance {
		t.Run(tt.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				policy := exact(2)
				policy.FirstByte = 2 * time.Second
				s := newScript(tt.step, step{status: 200})
				_, err := s.client(t, httpx.Config{Policy: policy}).Do(t.Context(), post)
				got := s.times()
				if err != nil {
					e := failure(t, err)
					got = e.Class.String()
					if e.Stopped == httpx.StoppedInline {
						got = "handed back: " + e.Wait.String()
					}
				}
				if got != tt.ours {
					t.Errorf("got %s, want %s", got, tt.ours)
				}
			})
		})
	}
}

func TestConformance_documented(t *testing.T) {
	var b strings.Builder
	b.WriteString("| the upstream says | openai-python | openai-node | openai-go | here, with 1 s backoff | where it differs, why |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- |\n")
	for _, c := range conformance {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", c.rule, c.python, c.node, c.goes, c.ours, c.why)
	}
	checkDocs(t, "conformance", b.String())
}
