package upstreamtest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

func TestParseFaults(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want upstreamtest.Faults
		text string // String of the result, in unless set
	}{
		{name: "nothing", in: ""},
		{name: "blanks", in: "  ", text: "-"},
		{
			name: "shares", in: "503=0.3,timeout=0.1,reset=0.1,cut_stream=0.5",
			want: upstreamtest.Faults{Shares: []upstreamtest.Share{
				{Kind: upstreamtest.Status(503), Share: 0.3},
				{Kind: upstreamtest.Timeout, Share: 0.1},
				{Kind: upstreamtest.Reset, Share: 0.1},
				{Kind: upstreamtest.CutStream, Share: 0.5},
			}},
		},
		{
			name: "counts keep their order", in: "503*2,reset*1,503*3",
			want: upstreamtest.Faults{First: []upstreamtest.Count{
				{Kind: upstreamtest.Status(503), N: 2}, {Kind: upstreamtest.Reset, N: 1}, {Kind: upstreamtest.Status(503), N: 3},
			}},
		},
		{
			name: "settings", in: " latency=200ms , jitter=50ms,retry_after=2s,slow_for=1m",
			want: upstreamtest.Faults{
				Latency: 200 * time.Millisecond, Jitter: 50 * time.Millisecond, RetryAfter: 2 * time.Second, SlowFor: time.Minute,
			},
			text: "latency=200ms,jitter=50ms,retry_after=2s,slow_for=1m0s",
		},
		{
			name: "hang is timeout", in: "hang=1",
			want: upstreamtest.Faults{Shares: []upstreamtest.Share{{Kind: upstreamtest.Timeout, Share: 1}}},
			text: "timeout=1",
		},
		{
			name: "ten tenths are one", in: "500=0.1,501=0.1,502=0.1,503=0.1,504=0.1,505=0.1,506=0.1,507=0.1,508=0.1,509=0.1",
			want: upstreamtest.Faults{Shares: tenTenths()},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := upstreamtest.ParseFaults(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ParseFaults(%q), -want +got:\n%s", tt.in, diff)
			}
			text := tt.in
			if tt.text != "" {
				text = strings.Trim(tt.text, "-")
			}
			if got.String() != text {
				t.Errorf("String is %q, want %q", got, text)
			}
		})
	}
}

func tenTenths() []upstreamtest.Share {
	var shares []upstreamtest.Share
	for i := range 10 {
		shares = append(shares, upstreamtest.Share{Kind: upstreamtest.Status(500 + i), Share: 0.1})
	}
	return shares
}

func TestParseFaultsNamesWhatItRefuses(t *testing.T) {
	tests := []struct {
		name string
		in   string
		says []string
	}{
		{name: "unknown kind", in: "teapot=0.1", says: []string{`"teapot=0.1" is not a fault or setting`}},
		{name: "status out of range", in: "200=1,600=1", says: []string{`"200=1"`, `"600=1"`}},
		{name: "status not in plain digits", in: "+503=1", says: []string{`"+503=1"`}},
		{name: "share above one", in: "503=1.5", says: []string{`share "1.5"`}},
		{name: "share below zero", in: "503=-0.5", says: []string{`share "-0.5"`}},
		{name: "share that is no number", in: "503=NaN", says: []string{`share "NaN"`}},
		{name: "shares that sum to more than one", in: "503=0.7,reset=0.4", says: []string{"shares sum to 1.1, more than 1"}},
		{name: "share given twice", in: "503=0.1,503=0.2", says: []string{`"503=0.2" is given twice`}},
		{name: "one kind under two names", in: "hang=0.1,timeout=0.2", says: []string{`"timeout=0.2" is given twice`}},
		{name: "setting given twice", in: "latency=1s,latency=2s", says: []string{`"latency=2s" is given twice`}},
		{name: "count of zero", in: "503*0", says: []string{`count "0"`}},
		{name: "count of a setting", in: "latency*2", says: []string{`"latency*2" is not a fault`}},
		{name: "duration without unit", in: "latency=200", says: []string{`duration "200", not one like 200ms`}},
		{name: "negative duration", in: "jitter=-1s", says: []string{`duration "-1s"`}},
		{name: "empty item", in: "503=0.1,", says: []string{`"" is neither`}},
		{name: "every problem at once", in: "a=1,b*2,c", says: []string{`"a=1"`, `"b*2"`, `"c"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := upstreamtest.ParseFaults(tt.in)
			if err == nil {
				t.Fatalf("ParseFaults(%q) = %v, want an error", tt.in, got)
			}
			for _, want := range append(tt.says, "upstreamtest: faults: ", "valid are KIND=SHARE", "slow_for=DURATION") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}
