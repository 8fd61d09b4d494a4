package upstreamtest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// The plain path without a network: what one answer costs the upstream.
func BenchmarkChatCompletion(b *testing.B) {
	up := upstreamtest.New(upstreamtest.Config{})
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		up.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodPost, chat, strings.NewReader(hello)))
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}

// The same over loopback, client included, from several goroutines.
func BenchmarkChatCompletionOverHTTP(b *testing.B) {
	up := upstreamtest.Start(b, upstreamtest.Config{})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Post(up.URL+chat, "application/json", strings.NewReader(hello))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body) // the status tells
			_ = resp.Body.Close()                 // read to its end
			if resp.StatusCode != http.StatusOK {
				b.Errorf("status is %d", resp.StatusCode)
			}
		}
	})
}
