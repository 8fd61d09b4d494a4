package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/client"
)

// No line here reaches a server: the mistake is found before.
func TestUsageErrorsExitWithTwo(t *testing.T) {
	tests := []struct {
		args string
		env  map[string]string
		want string
	}{
		{args: "", want: `see "ferry --help"`},
		{args: "nonsense", want: `unexpected argument nonsense; see "ferry --help"`},
		{args: "get", want: `expected "<id>"; see "ferry get --help"`},
		{args: "list --bogus", want: `unknown flag --bogus; see "ferry list --help"`},
		{args: "list --limit 0", want: "--limit is below 1"},
		{args: "wait x --timeout=-1s", want: "--timeout cannot be negative"},
		{args: "wait x --timeout soon", want: "--timeout"},
		{args: "upstreams shut", want: `"shut" is not open, close or auto`},
		{args: "upstreams open", want: `name the upstream, as in "ferry upstreams open openai"`},
		{args: "upstreams open a b", want: `unexpected argument b; see "ferry upstreams --help"`},
		{args: "submit", want: "give a prompt, or a request with --file"},
		{args: "submit hi --file x", want: "give a prompt or --file, not both"},
		{args: "submit --file x --model m", want: "the model stands in the request"},
		{args: "submit --file /nowhere", want: "no such file"},
		{args: "submit hi --kind poem", want: "--kind must be one of"},
		{args: "submit hi --delay=-1s", want: "cannot be negative"},
		{args: "get x --url ftp://a", want: `base URL "ftp://a" is not of the form http://host:port`},
		{args: "get x", env: map[string]string{"FERRY_URL": "localhost:8080"}, want: `base URL "localhost:8080"`},
		{args: "get x", env: map[string]string{"FERRY_API_KEY": "a b"}, want: "API key holds a space"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			env := Env{
				Ctx: t.Context(), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
				Getenv: func(name string) string { return tt.env[name] },
			}
			require.Equal(t, exitUsage, run(env, strings.Fields(tt.args)))
			require.Empty(t, stdout.String())
			require.Contains(t, stderr.String(), tt.want)
			require.True(t, strings.HasPrefix(stderr.String(), "ferry: "), stderr.String())
			require.Equal(t, 1, strings.Count(stderr.String(), "\n"), "one line")
		})
	}
}

// fullDisk is a stdout that takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAnOutputThatIsLostIsAnError(t *testing.T) {
	var stderr bytes.Buffer
	env := Env{Ctx: t.Context(), Stdout: fullDisk{}, Stderr: &stderr, Getenv: func(string) string { return "" }}
	require.Equal(t, exitFailure, run(env, []string{"version"}))
	require.Equal(t, "ferry: no space left on device\n", stderr.String())
}

func TestColoursKeepTheColumnsAligned(t *testing.T) {
	v := view{now: time.Now(), color: true}
	got := v.list([]*client.Job{
		{ID: "job_1", State: client.StateFailed, CreatedAt: v.now},
		{ID: "job_2", State: client.StateSucceeded, CreatedAt: v.now},
	})
	require.Equal(t, ""+
		"ID     STATE      KIND  MODEL  UPSTREAM  ATTEMPTS  CREATED\n"+
		"job_1  \x1b[31mfailed     \x1b[0m-     -      -         0/0       now\n"+
		"job_2  \x1b[32msucceeded  \x1b[0m-     -      -         0/0       now\n", got)
}

func TestABreakersColourIsWhatItDoesToCalls(t *testing.T) {
	v := view{now: time.Now(), color: true}
	got := v.upstreams([]client.Upstream{
		{Name: "a", Breaker: client.Breaker{State: client.BreakerOpen, Mode: client.ModeOpen}},
		{Name: "b", Breaker: client.Breaker{State: client.BreakerHalfOpen}},
		{Name: "c", Breaker: client.Breaker{State: client.BreakerClosed}},
		{Name: "d", Breaker: client.Breaker{State: "of a newer server"}},
	})
	rows := strings.Split(got, "\n")
	require.True(t, strings.HasPrefix(rows[1], "a         \x1b[31mopen, forced       \x1b[0m-"), rows[1])
	require.Contains(t, rows[2], "\x1b[33mhalf-open")
	require.Contains(t, rows[3], "\x1b[32mclosed")
	require.NotContains(t, rows[4], "\x1b")
}

func TestOnATerminalAnswersCannotSteerIt(t *testing.T) {
	job := &client.Job{Kind: client.KindChat, Result: []byte(`{"choices":[{"message":{"content":"a\n\u001b]0;title\u0007b"}}]}`)}
	require.Equal(t, "a\n]0;titleb", view{terminal: true}.answer(job))
	require.Equal(t, "a\n\x1b]0;title\ab", view{}.answer(job), "a file gets every byte")
}

func TestAnswer(t *testing.T) {
	tests := []struct {
		name, result string
		kind         client.Kind
		want         string
	}{
		{name: "chat", result: `{"choices":[{"message":{"content":"hi"}}]}`, want: "hi"},
		{name: "text completion", kind: client.KindGenerate, result: `{"choices":[{"text":"hi"}]}`, want: "hi"},
		{name: "refusal", result: `{"choices":[{"message":{"content":null,"refusal":"no"}}]}`, want: "no"},
		{name: "content in parts is shown as it is", result: `{"choices":[{"message":{"content":[]}}]}`, want: "{\n  \"choices\": [\n    {\n      \"message\": {\n        \"content\": []\n      }\n    }\n  ]\n}"},
		{name: "base64 embeddings", kind: client.KindEmbeddings, result: `{"data":[{"embedding":"AAA="}]}`, want: "1 embedding; --json prints them"},
		{name: "another JSON", result: `[1]`, want: "[\n  1\n]"},
		{name: "nothing", want: "(no answer is stored)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, view{}.answer(&client.Job{Kind: tt.kind, Result: []byte(tt.result)}))
		})
	}
}

func TestWhen(t *testing.T) {
	now := time.Now()
	tests := []struct {
		since time.Duration
		want  string
	}{
		{500 * time.Millisecond, "now"},
		{1040 * time.Millisecond, "1 second ago"},
		{2 * time.Second, "2 seconds ago"},
		{2100 * time.Millisecond, "2.1 seconds ago"},
		{2340 * time.Millisecond, "2.3 seconds ago"},
		{-30 * time.Second, "in 30 seconds"},
		{100 * time.Second, "2 minutes ago"},
		{-3 * time.Hour, "in 3 hours"},
		{49 * time.Hour, "2 days ago"},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, view{now: now}.when(now.Add(-tt.since)), tt.since)
	}
	require.Empty(t, view{now: now}.when(time.Time{}))
}
