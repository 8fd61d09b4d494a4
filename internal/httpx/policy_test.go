package httpx_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestPolicy_WithDefaults_completes_the_zero_value(t *testing.T) {
	want := httpx.Policy{
		MaxAttempts: 3,
		Backoff:     httpx.Backoff{Base: 500 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2, Jitter: httpx.JitterEqual},
		MaxInline:   2 * time.Second, MaxHint: time.Hour,
		FirstByte: 2 * time.Minute, Idle: time.Minute, Attempt: 5 * time.Minute, Total: 10 * time.Minute,
		Hedge: httpx.Hedge{Min: 100 * time.Millisecond},
	}
	if diff := cmp.Diff(want, httpx.Policy{}.WithDefaults()); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
}

func TestPolicy_WithDefaults_never_contradicts_a_limit(t *testing.T) {
	limit := rapid.OneOf(
		rapid.Just(time.Duration(0)), rapid.Just(time.Duration(-1)),
		rapid.Map(rapid.Int64Range(1, int64(24*time.Hour)), func(n int64) time.Duration { return time.Duration(n) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		var p httpx.Policy
		// One limit is set by the user; the others come from the defaults.
		switch value := limit.Draw(t, "limit"); rapid.IntRange(0, 4).Draw(t, "which") {
		case 0:
			p.Total = value
		case 1:
			p.Attempt = value
		case 2:
			p.Idle = value
		case 3:
			p.Backoff.Base = max(value, 0)
		}
		p = p.WithDefaults()
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, p.WithDefaults()); diff != "" {
			t.Fatalf("a second time changes (-first +second):\n%s", diff)
		}
	})
}

func TestPresets_are_complete_and_valid(t *testing.T) {
	presets := httpx.Presets()
	for _, kind := range []string{"chat", "generate", "embeddings", "batch"} {
		p, ok := presets[kind]
		if !ok {
			t.Errorf("no preset for %s", kind)
		}
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if diff := cmp.Diff(p, p.WithDefaults()); diff != "" {
			t.Errorf("%s is not complete (-preset +completed):\n%s", kind, diff)
		}
	}
	if chat, batch := presets["chat"], presets["batch"]; chat.Total >= batch.Total || chat.MaxAttempts >= batch.MaxAttempts {
		t.Error("chat is not less patient than batch")
	}
}

func TestPresets_documented(t *testing.T) {
	presets := httpx.Presets()
	columns := []httpx.Policy{httpx.Policy{}.WithDefaults(), presets["chat"], presets["generate"], presets["embeddings"], presets["batch"]}
	var b strings.Builder
	b.WriteString("| key | default | chat | generate | embeddings | batch |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, row := range []struct {
		key   string
		value func(httpx.Policy) any
	}{
		{"max_attempts", func(p httpx.Policy) any { return p.MaxAttempts }},
		{"backoff.base", func(p httpx.Policy) any { return p.Backoff.Base }},
		{"backoff.max", func(p httpx.Policy) any { return p.Backoff.Max }},
		{"backoff.multiplier", func(p httpx.Policy) any { return p.Backoff.Multiplier }},
		{"backoff.jitter", func(p httpx.Policy) any { return p.Backoff.Jitter }},
		{"max_inline", func(p httpx.Policy) any { return p.MaxInline }},
		{"max_hint", func(p httpx.Policy) any { return p.MaxHint }},
		{"first_byte", func(p httpx.Policy) any { return p.FirstByte }},
		{"idle", func(p httpx.Policy) any { return p.Idle }},
		{"attempt", func(p httpx.Policy) any { return p.Attempt }},
		{"total", func(p httpx.Policy) any { return p.Total }},
		{"unknown", func(p httpx.Policy) any { return p.Unknown }},
		{"hedge.on", func(p httpx.Policy) any { return p.Hedge.On }},
	} {
		fmt.Fprintf(&b, "| `%s` |", row.key)
		for _, p := range columns {
			fmt.Fprintf(&b, " %v |", row.value(p))
		}
		b.WriteString("\n")
	}
	checkDocs(t, "policy", b.String())
}

func TestConfig_Validate_names_every_problem(t *testing.T) {
	cfg := httpx.Config{
		Policy: httpx.Policy{
			MaxAttempts: -1, MaxInline: -1, MaxHint: -1,
			Backoff: httpx.Backoff{Base: 2 * time.Second, Max: time.Second, Multiplier: 0.5, Jitter: 99, Spread: 2},
			Total:   time.Second, Attempt: time.Minute, FirstByte: time.Hour,
			Unknown: 99,
			Hedge:   httpx.Hedge{Delay: -1, Min: -1},
		},
		Pool:    httpx.Pool{MaxConns: -1, MaxIdle: -1, IdleTimeout: -1, Wait: -1, Refresh: -1, DialTimeout: -1, TLSTimeout: -1},
		Budget:  httpx.BudgetConfig{Ratio: 2, Floor: -1, Burst: 0.5},
		MaxBody: -1,
	}
	want := []string{
		"max_attempts: ", "max_inline: ", "max_hint: ", "attempt: ", "first_byte: ", "unknown: ",
		"backoff.max: 1s is below base 2s", "backoff.multiplier: ", "backoff.spread: ", "backoff.jitter: ",
		"hedge.delay: ", "hedge.min: ",
		"pool.max_conns: ", "pool.max_idle: ", "pool.idle_timeout: ", "pool.wait: ", "pool.refresh: ", "pool.dial_timeout: ", "pool.tls_timeout: ",
		"budget.ratio: ", "budget.floor: ", "budget.burst: ", "max_body: ",
	}
	_, err := httpx.New(cfg)
	if err == nil {
		t.Fatal("no error")
	}
	text := "\n" + strings.TrimPrefix(err.Error(), "httpx: ") + "\n"
	for _, key := range want {
		if !strings.Contains(text, "\n"+key) {
			t.Errorf("nothing about %q in:%s", key, text)
		}
	}
	if got := strings.Count(text, "\n") - 1; got != len(want) {
		t.Errorf("%d problems, want %d:%s", got, len(want), text)
	}
}

func TestEnums_survive_text(t *testing.T) {
	for c := httpx.Unclassified; c <= httpx.Canceled; c++ {
		var back httpx.Class
		text, err := c.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != c {
			t.Errorf("class %s became %s", c, back)
		}
	}
	for j := httpx.JitterUnset; j <= httpx.JitterEqual; j++ {
		var back httpx.Jitter
		text, err := j.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != j {
			t.Errorf("jitter %s became %s", j, back)
		}
	}
	for _, u := range []httpx.UnknownOutcome{httpx.Repeat, httpx.GiveUp} {
		var back httpx.UnknownOutcome
		text, err := u.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != u {
			t.Errorf("unknown outcome %s became %s", u, back)
		}
	}
	if _, err := httpx.Class(99).MarshalText(); err == nil {
		t.Error("class 99 has a name")
	}
	if new(httpx.Jitter).UnmarshalText([]byte("some")) == nil {
		t.Error(`jitter "some" was accepted`)
	}
	if got := httpx.Class(99).String(); got != "class(99)" {
		t.Errorf("class 99 prints as %q", got)
	}
}
