package upstreamtest_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// Whatever ParseFaults takes, String gives back, and no share lies outside 0..1.
func FuzzParseFaults(f *testing.F) {
	for _, seed := range []string{
		"", "503=0.3,timeout=0.1,reset=0.1,latency=200ms,jitter=50ms", "503*2,reset*1", "hang=1", "quota=1e-3,429=0x1p-2",
		"slow_for=1h,retry_after=1ns", "503=-0", "cut_stream=0,html=1", "=", "*", ",", "latency=", "503=0.1,503=0.1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		faults, err := upstreamtest.ParseFaults(in)
		if err != nil {
			return
		}
		var sum float64
		for _, s := range faults.Shares {
			if !(s.Share >= 0 && s.Share <= 1) {
				t.Errorf("ParseFaults(%q) has share %v", in, s.Share)
			}
			sum += s.Share
		}
		if sum > 1.001 {
			t.Errorf("ParseFaults(%q): shares sum to %v", in, sum)
		}
		again, err := upstreamtest.ParseFaults(faults.String())
		if err != nil {
			t.Fatalf("ParseFaults(%q).String() = %q: %v", in, faults, err)
		}
		if diff := cmp.Diff(faults, again); diff != "" {
			t.Errorf("%q does not round-trip through %q:\n%s", in, faults, diff)
		}
	})
}
