package httpx_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// Many calls at once against an upstream with every fault, hedges and retries on: whatever happens, the ledger of each call
// has every request that the upstream saw with its key, and the pool is empty in the end.
func TestLedger_has_every_request_the_upstream_saw(t *testing.T) {
	var mu sync.Mutex // guards seen
	seen := make(map[string]int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("Idempotency-Key")]++
		mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body)
		switch rand.IntN(6) {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "short")
		case 3:
			<-r.Context().Done()
		default:
			answer(w, r)
		}
	}))
	defer server.Close()
	c := newClient(t, httpx.Config{
		Pool:   httpx.Pool{MaxConns: 250, Wait: time.Minute},
		Budget: httpx.BudgetConfig{Off: true},
		Policy: httpx.Policy{
			MaxAttempts: 4, Backoff: httpx.Backoff{Base: time.Millisecond, Max: 5 * time.Millisecond},
			FirstByte: 50 * time.Millisecond, Hedge: httpx.Hedge{On: true, Delay: 10 * time.Millisecond},
		},
	})
	var running sync.WaitGroup
	for i := range 300 {
		running.Go(func() {
			key := fmt.Sprintf("job_%d", i)
			resp, err := c.Do(t.Context(), httpx.Request{URL: server.URL, Body: []byte("{}"), IdempotencyKey: key})
			var attempts []httpx.Attempt
			if err == nil {
				attempts = resp.Attempts
			} else if e, ok := errors.AsType[*httpx.Error](err); ok {
				attempts = e.Attempts
			}
			sent := 0
			for _, a := range attempts {
				if a.Sent {
					sent++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[key] > sent || len(attempts) > 4 {
				t.Errorf("%s: the upstream saw %d requests, the ledger has %d of %d attempts as sent", key, seen[key], sent, len(attempts))
			}
		})
	}
	running.Wait()
	st := c.Stats()
	if st.Pool.InUse != 0 || st.Attempts < st.Calls || st.Hedges == 0 || st.Retries == 0 {
		t.Errorf("stats %+v, want no place in use, and retries and hedges", st)
	}
}
