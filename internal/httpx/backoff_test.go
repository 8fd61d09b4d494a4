package httpx_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestBackoff_Wait(t *testing.T) {
	const base, limit = 100 * time.Millisecond, time.Second
	tests := []struct {
		jitter httpx.Jitter
		chance float64
		want   string // waits before retries 1 to 5
	}{
		{httpx.JitterUnset, 0.3, "[100ms 200ms 400ms 800ms 1s]"},
		{httpx.JitterNone, 0.3, "[100ms 200ms 400ms 800ms 1s]"},
		{httpx.JitterFixed, 0, "[75ms 150ms 300ms 600ms 750ms]"},
		{httpx.JitterFixed, 0.5, "[100ms 200ms 400ms 800ms 1s]"},
		{httpx.JitterFixed, 1, "[125ms 250ms 500ms 1s 1s]"},
		{httpx.JitterFull, 0, "[0s 0s 0s 0s 0s]"},
		{httpx.JitterFull, 0.5, "[50ms 100ms 200ms 400ms 500ms]"},
		{httpx.JitterEqual, 0, "[50ms 100ms 200ms 400ms 500ms]"},
		{httpx.JitterEqual, 1, "[100ms 200ms 400ms 800ms 1s]"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s at %v", tt.jitter, tt.chance), func(t *testing.T) {
			b := httpx.Backoff{Base: base, Max: limit, Multiplier: 2, Jitter: tt.jitter, Spread: 0.25}
			var got []time.Duration
			for n := range 5 {
				got = append(got, b.Wait(n+1, func() float64 { return tt.chance }))
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("waits %v, want %s", got, tt.want)
			}
		})
	}
}

func drawBackoff(t *rapid.T) httpx.Backoff {
	base := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "base"))
	return httpx.Backoff{
		Base:       base,
		Max:        base + time.Duration(rapid.Int64Range(0, int64(100*time.Hour)).Draw(t, "above base")),
		Multiplier: rapid.Float64Range(1, 100).Draw(t, "multiplier"),
		Jitter:     rapid.SampledFrom([]httpx.Jitter{httpx.JitterNone, httpx.JitterFixed, httpx.JitterFull, httpx.JitterEqual}).Draw(t, "jitter"),
		Spread:     rapid.Float64Range(0, 1).Draw(t, "spread"),
	}
}

func TestBackoff_Wait_stays_between_zero_and_Max(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackoff(t)
		n := rapid.Int().Draw(t, "n")
		chance := rapid.OneOf(rapid.Float64Range(0, 1), rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 2})).Draw(t, "chance")
		if got := b.Wait(n, func() float64 { return chance }); got < 0 || got > b.Max {
			t.Fatalf("%+v waits %s before retry %d", b, got, n)
		}
	})
}

func TestBackoff_Wait_never_shrinks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackoff(t)
		chance := rapid.Float64Range(0, 1).Draw(t, "chance")
		n := rapid.IntRange(1, 1000).Draw(t, "n")
		rnd := func() float64 { return chance }
		if first, second := b.Wait(n, rnd), b.Wait(n+1, rnd); second < first {
			t.Fatalf("%+v waits %s before retry %d and %s before the next", b, first, n, second)
		}
	})
}

func TestBackoff_Wait_keeps_the_bounds_of_its_jitter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackoff(t)
		n := rapid.IntRange(1, 100).Draw(t, "n")
		plain := b
		plain.Jitter = httpx.JitterNone
		step := float64(plain.Wait(n, nil))
		low, high := step, step
		switch b.Jitter {
		case httpx.JitterFixed:
			low, high = step*(1-b.Spread), step*(1+b.Spread)
		case httpx.JitterFull:
			low = 0
		case httpx.JitterEqual:
			low = step / 2
		}
		got := float64(b.Wait(n, rand.Float64))
		if got < low-2 || got > high+2 { // a nanosecond of rounding on either side
			t.Fatalf("%+v waits %v before retry %d, want between %v and %v", b, got, n, low, high)
		}
	})
}

func TestBackoff_Wait_spreads_a_crowd(t *testing.T) {
	b := httpx.Backoff{Base: time.Second, Max: time.Second, Multiplier: 1, Jitter: httpx.JitterFull}
	rnd := rand.New(rand.NewPCG(1, 2))
	var quarters [4]int
	for range 10_000 {
		quarters[min(b.Wait(1, rnd.Float64)*4/time.Second, 3)]++
	}
	for i, n := range quarters {
		if n < 2300 || n > 2700 {
			t.Errorf("%d of 10000 waits fall into quarter %d, want about 2500", n, i+1)
		}
	}
}
