// Package bench compares internal/httpx with plain net/http and its peers, in one run on one machine.
//
// It is a module of its own, so that the peers never enter the product's go.mod:
//
//	cd tests/bench && go test -run=^$ -bench=HTTP -benchmem
//
// BenchmarkHTTPStub and BenchmarkHTTPLoopback give allocations and times; BenchmarkHTTPRatio compares the times in pairs,
// which holds on a machine that is not idle.
package bench

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eapache/go-resiliency/breaker"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/ferry-queue/ferry/internal/httpx"
)

const timeout = 5 * time.Minute

var (
	question = []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("why ", 64) + `"}]}`)
	answer   = []byte(`{"id":"c","choices":[{"message":{"role":"assistant","content":"` + strings.Repeat("because ", 128) + `"}}]}`)
)

// ask makes one successful call and returns the size of the answer.
type ask func(ctx context.Context, url string) (int, error)

type contestant struct {
	name string
	ask  ask
}

// clients are the contestants. Each has a time limit per attempt except "nethttp", which shows what the limit costs.
func clients(rt http.RoundTripper) []contestant {
	return []contestant{
		{"nethttp", plain(&http.Client{Transport: rt}, 0)},
		{"nethttp_timeout", plain(&http.Client{Transport: rt}, timeout)},
		{"retryablehttp", retryable(rt)},
		{"failsafe", plain(&http.Client{Transport: failsafe(rt)}, timeout)},
		{"ferry", ferry(rt)},
	}
}

func plain(c *http.Client, limit time.Duration) ask {
	return func(ctx context.Context, url string) (int, error) {
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(question))
		if err != nil {
			return 0, err
		}
		req.Header.Set("Content-Type", "application/json")
		return read(c.Do(req))
	}
}

func read(resp *http.Response, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return len(body), err
}

func retryable(rt http.RoundTripper) ask {
	c := retryablehttp.NewClient()
	c.HTTPClient, c.Logger, c.RetryMax = &http.Client{Transport: rt}, nil, 2
	return func(ctx context.Context, url string) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, url, question)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Content-Type", "application/json")
		return read(c.Do(req))
	}
}

func failsafe(rt http.RoundTripper) http.RoundTripper {
	retry := failsafehttp.NewRetryPolicyBuilder().WithMaxRetries(2).Build()
	fuse := circuitbreaker.NewBuilder[*http.Response]().WithFailureRateThreshold(0.6, 20, 10*time.Second).Build()
	return failsafehttp.NewRoundTripper(rt, retry, fuse)
}

// ferry has everything on: limits for first byte, idle, attempt and total, pool, breaker, budget, hooks and record.
func ferry(rt http.RoundTripper) ask {
	cfg := httpx.Config{
		Breaker: breaker.New(20, 1, time.Second),
		Hooks: httpx.Hooks{
			Attempt: func(context.Context, httpx.Attempt) {},
			Wait:    func(context.Context, httpx.Wait) {},
			GiveUp:  func(context.Context, *httpx.Error) {},
		},
	}
	if rt != nil {
		cfg.Transport = func(http.RoundTripper) http.RoundTripper { return rt }
	}
	c, err := httpx.New(cfg)
	if err != nil {
		panic(err) // a benchmark with a wrong configuration is no benchmark
	}
	return func(ctx context.Context, url string) (int, error) {
		resp, err := c.Do(ctx, httpx.Request{
			URL: url, Header: http.Header{"Content-Type": {"application/json"}}, Body: question,
		})
		if err != nil {
			return 0, err
		}
		return len(resp.Body), nil
	}
}

// stub answers without a network: what is measured is the client alone.
type stub struct{ header http.Header }

func (s stub) RoundTrip(req *http.Request) (*http.Response, error) {
	_ = req.Body.Close()
	return &http.Response{
		StatusCode: 200, Header: s.header, Request: req,
		ContentLength: int64(len(answer)), Body: io.NopCloser(bytes.NewReader(answer)),
	}, nil
}

func BenchmarkHTTPStub(b *testing.B) {
	for _, c := range clients(stub{http.Header{"Content-Type": {"application/json"}}}) {
		b.Run("client="+c.name, func(b *testing.B) { run(b, c.ask, "http://upstream.test/v1/chat/completions") })
	}
}

func BenchmarkHTTPLoopback(b *testing.B) {
	url, contestants := loopback(b)
	for _, c := range contestants {
		b.Run("client="+c.name, func(b *testing.B) { run(b, c.ask, url) })
	}
}

// loopback starts a server and returns the contestants with real transports; ferry uses its own pool.
func loopback(b *testing.B) (url string, contestants []contestant) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	b.Cleanup(server.Close)
	contestants = clients(&http.Transport{MaxIdleConnsPerHost: 64})
	contestants[len(contestants)-1].ask = ferry(nil)
	return server.URL + "/v1/chat/completions", contestants
}

func run(b *testing.B, call ask, url string) {
	b.ReportAllocs()
	for b.Loop() {
		if n, err := call(b.Context(), url); err != nil || n != len(answer) {
			b.Fatalf("%d bytes, error %v", n, err)
		}
	}
}

// BenchmarkHTTPRatio lets the contestants take turns, a batch of calls each per round, and reports for each the median over
// the rounds of its time divided by that of net/http with a time limit.
func BenchmarkHTTPRatio(b *testing.B) {
	b.Run("over=stub", func(b *testing.B) {
		race(b, "http://upstream.test/v1/chat/completions", clients(stub{http.Header{}}), 500)
	})
	b.Run("over=loopback", func(b *testing.B) {
		url, contestants := loopback(b)
		race(b, url, contestants, 50)
	})
}

const yardstick = 1 // the index of nethttp_timeout

func race(b *testing.B, url string, contestants []contestant, batch int) {
	ratios := make([][]float64, len(contestants))
	took := make([]time.Duration, len(contestants))
	round := 0
	for b.Loop() {
		for i := range contestants {
			i = (i + round) % len(contestants) // nobody always follows the same neighbour
			start := time.Now()
			for range batch {
				if _, err := contestants[i].ask(b.Context(), url); err != nil {
					b.Fatal(err)
				}
			}
			took[i] = time.Since(start)
		}
		for i := range contestants {
			ratios[i] = append(ratios[i], float64(took[i])/float64(took[yardstick]))
		}
		round++
	}
	for i, c := range contestants {
		slices.Sort(ratios[i])
		b.ReportMetric(ratios[i][len(ratios[i])/2], c.name+"_x")
	}
}
