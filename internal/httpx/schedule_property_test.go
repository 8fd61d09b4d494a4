package httpx_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// drawSteps draws up to twelve answers: each with a status, how long it takes, and maybe a hint.
func drawSteps(t *rapid.T) []step {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		st := step{
			status: rapid.SampledFrom([]int{200, 400, 429, 500, 503}).Draw(t, "status"),
			after:  time.Duration(rapid.IntRange(0, 5000).Draw(t, "takes")) * time.Millisecond,
		}
		if rapid.Bool().Draw(t, "hints") {
			st.header = fmt.Sprintf("Retry-After: %d", rapid.IntRange(0, 7200).Draw(t, "hint"))
		}
		return st
	}), 1, 12).Draw(t, "steps")
}

func drawPolicy(t *rapid.T) httpx.Policy {
	duration := func(label string, least, most time.Duration) time.Duration {
		return time.Duration(rapid.Int64Range(int64(least), int64(most)).Draw(t, label))
	}
	base := duration("base", time.Millisecond, 10*time.Second)
	p := httpx.Policy{
		MaxAttempts: rapid.IntRange(1, 10).Draw(t, "attempts"),
		Backoff: httpx.Backoff{
			Base: base, Max: base + duration("above base", 0, time.Minute),
			Jitter: rapid.SampledFrom([]httpx.Jitter{httpx.JitterNone, httpx.JitterFull, httpx.JitterEqual}).Draw(t, "jitter"),
		},
		MaxInline: duration("inline", time.Millisecond, time.Hour),
		MaxHint:   duration("max hint", time.Millisecond, 2*time.Hour),
		Total:     duration("total", 10*time.Second, time.Hour),
		FirstByte: 10 * time.Second, Attempt: 10 * time.Second,
	}
	return p.WithDefaults()
}

// inBubble hides T.Deadline, which must not be called in a synctest bubble, from rapid.
type inBubble struct{ rapid.TB }

// Whatever an upstream answers and whatever the policy is: the record, the clock and the limits agree.
func TestDo_schedule_keeps_its_promises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(r *rapid.T) {
			p, steps := drawPolicy(r), drawSteps(r)
			s := newScript(steps...)
			c := s.client(t, httpx.Config{Policy: p, Budget: httpx.BudgetConfig{Off: true}})
			start := time.Now()
			resp, err := c.Do(t.Context(), post)
			took := time.Since(start)

			var attempts []httpx.Attempt
			if err == nil {
				attempts = resp.Attempts
			} else {
				e := failure(t, err)
				attempts = e.Attempts
				checkError(r, p, e)
			}
			checkAttempts(r, p, steps, attempts)
			if took > p.Total {
				r.Fatalf("the call took %s with a total limit of %s", took, p.Total)
			}
			if last := attempts[len(attempts)-1]; start.Add(took) != last.Start.Add(last.Duration) {
				r.Fatalf("the call ended %s after its last attempt", start.Add(took).Sub(last.Start.Add(last.Duration)))
			}
		})
	})
}

func checkError(r *rapid.T, p httpx.Policy, e *httpx.Error) {
	if e.Stopped == "" || e.Class == httpx.OK || e.Class == httpx.Unclassified {
		r.Fatalf("an error without a reason to stop: %v", e)
	}
	if e.Wait < 0 || e.Wait > max(p.MaxHint, p.Backoff.Max) {
		r.Fatalf("hands back %s, want at most %s", e.Wait, max(p.MaxHint, p.Backoff.Max))
	}
	if (e.Stopped == httpx.StoppedInline) != (e.Wait > p.MaxInline && len(e.Attempts) < p.MaxAttempts && e.Class != httpx.Permanent) &&
		e.Stopped != httpx.StoppedTotal {
		r.Fatalf("stopped by %s with a wait of %s after %d of %d attempts and %s in process",
			e.Stopped, e.Wait, len(e.Attempts), p.MaxAttempts, p.MaxInline)
	}
}

func checkAttempts(r *rapid.T, p httpx.Policy, steps []step, attempts []httpx.Attempt) {
	if len(attempts) < 1 || len(attempts) > p.MaxAttempts {
		r.Fatalf("%d attempts, want 1 to %d", len(attempts), p.MaxAttempts)
	}
	for i, a := range attempts {
		st := steps[min(i, len(steps)-1)]
		if a.Status != st.status && a.Reason != "timeout_total" {
			r.Fatalf("attempt %d is recorded with status %d, want %d", i+1, a.Status, st.status)
		}
		if i == len(attempts)-1 {
			return
		}
		if !a.Class.Retryable() {
			r.Fatalf("attempt %d was %s and was repeated", i+1, a.Class)
		}
		if gap := attempts[i+1].Start.Sub(a.Start.Add(a.Duration)); gap != a.Wait || gap > p.MaxInline {
			r.Fatalf("%s passed after attempt %d, want %s and at most %s", gap, i+1, a.Wait, p.MaxInline)
		}
	}
}
