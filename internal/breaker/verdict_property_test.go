package breaker

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// server is a Redis whose TIME the test sets.
type server struct {
	rdb    *redis.Client
	script *redis.Script
	set    func(name string, now time.Time)
}

// realServer is a redis-server. Its TIME cannot be set, so the script reads a
// key instead; every other line is the shipped one.
func realServer(t *testing.T) server {
	if testing.Short() {
		t.Skip("-short: starts a redis-server")
	}
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	source := strings.Replace(verdictSource, "redis.call('TIME')", "redis.call('HMGET', KEYS[1] .. ':clock', 's', 'us')", 1)
	require.NotEqual(t, verdictSource, source)
	return server{rdb: rdb, script: redis.NewScript(source), set: func(name string, now time.Time) {
		require.NoError(t, rdb.HSet(t.Context(), key(name, "state")+":clock", "s", now.Unix(), "us", now.Nanosecond()/1000).Err())
	}}
}

func miniServer(t *testing.T) server {
	m := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return server{rdb: rdb, script: verdictScript, set: func(_ string, now time.Time) { m.SetTime(now) }}
}

func TestVerdictScriptSaysWhatTheModelSays(t *testing.T) {
	for name, start := range map[string]func(*testing.T) server{"redis-server": realServer, "miniredis": miniServer} {
		t.Run(name, func(t *testing.T) {
			s, n := start(t), new(atomic.Int64)
			rapid.Check(t, func(rt *rapid.T) {
				cfg := drawConfig(rt)
				cfg.Name = fmt.Sprintf("u%d", n.Add(1))
				w := &walk{t: t, server: s, m: newModel(cfg), epochs: map[string]int64{}}
				w.tick(1_700_000_000_000)
				rt.Repeat(map[string]func(*rapid.T){
					"":         w.check,
					"fold":     w.fold,
					"outage":   w.outage,
					"permit":   w.permit,
					"settle":   w.settle,
					"override": w.override,
					"later":    w.later,
					"reopen":   w.reopen,
					"back":     w.back,
					"read":     w.read,
					"probe":    w.probe,
				})
			})
		})
	}
}

func drawConfig(rt *rapid.T) Config {
	return Config{
		Window:       time.Duration(rapid.SampledFrom([]int{100, 1000, 10_000}).Draw(rt, "window_ms")) * time.Millisecond,
		MinCalls:     rapid.IntRange(1, 30).Draw(rt, "min_calls"),
		FailureRatio: rapid.SampledFrom([]float64{0.05, 0.5, 0.6, 1}).Draw(rt, "failure_ratio"),
		SlowRatio:    rapid.SampledFrom([]float64{0.3, 0.8, 1}).Draw(rt, "slow_ratio"),
		Margin:       rapid.SampledFrom([]float64{-1, 0.1, 0.3}).Draw(rt, "margin"),
		HardFailures: rapid.SampledFrom([]int{-1, 5, 20}).Draw(rt, "hard_failures"),
		Probes:       rapid.IntRange(1, 3).Draw(rt, "probes"),
		Successes:    rapid.IntRange(1, 3).Draw(rt, "successes"),
		ForgetTrips:  rapid.SampledFrom([]time.Duration{time.Second, time.Minute}).Draw(rt, "forget_trips"),
		Ramp:         rapid.SampledFrom([]time.Duration{-1, 2 * time.Second}).Draw(rt, "ramp"),
	}.WithDefaults()
}

// walk is one random history, told to the script and to the model.
type walk struct {
	t *testing.T
	server
	m      *model
	last   verdict
	issued int
	epochs map[string]int64 // of each probe begun, settled or not
}

func (w *walk) tick(ms int64) {
	w.m.now = ms
	w.set(w.m.cfg.Name, time.UnixMilli(ms))
}

// say runs an operation on both sides and compares all they answer.
func (w *walk) say(rt *rapid.T, op string, args []any, model func() bool) {
	jitter := rapid.SampledFrom([]float64{0.9, 1, 1.07}).Draw(rt, "jitter")
	got := w.ask(rt, op, w.m.cfg.arguments(jitter), args)
	want := w.m.do(jitter, model)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(verdict{})); diff != "" {
		rt.Fatalf("%s %v: model (-), script (+):\n%s", op, args, diff)
	}
	w.last = got
}

func (w *walk) ask(rt *rapid.T, op string, cfg, args []any) verdict {
	argv := slices.Concat([]any{op, channel(w.m.cfg.Name)}, cfg, args)
	r, err := w.script.Run(w.t.Context(), w.rdb, keys(w.m.cfg.Name), argv...).Int64Slice()
	require.NoError(rt, err)
	got, err := newVerdict(r)
	require.NoError(rt, err)
	return got
}

// read comes at any time, also before the clock's consequences have been
// drawn, and leaves what is stored as it was.
func (w *walk) read(rt *rapid.T) {
	w.later(rt)
	before := w.stored(rt)
	got := w.ask(rt, opRead, w.m.cfg.arguments(1), nil)
	if diff := cmp.Diff(w.m.read(), got, cmp.AllowUnexported(verdict{})); diff != "" {
		rt.Fatalf("read: model (-), script (+):\n%s", diff)
	}
	require.Equal(rt, before, w.stored(rt))
}

// stored is all that Redis holds on the upstream.
func (w *walk) stored(rt *rapid.T) []any {
	k := keys(w.m.cfg.Name)
	record, err := w.rdb.HGetAll(w.t.Context(), k[0]).Result()
	require.NoError(rt, err)
	window, err := w.rdb.HGetAll(w.t.Context(), k[1]).Result()
	require.NoError(rt, err)
	leases, err := w.rdb.ZRangeWithScores(w.t.Context(), k[2], 0, -1).Result()
	require.NoError(rt, err)
	return []any{record, window, leases}
}

// check polls, and holds what must be true of every verdict.
func (w *walk) check(rt *rapid.T) {
	before := w.last.epoch
	w.say(rt, opFold, []any{0, 0, 0, 0}, func() bool { return w.m.fold(0, counts{}) })
	require.GreaterOrEqual(rt, w.last.epoch, before, "epochs rise")
	require.LessOrEqual(rt, w.last.probes, int64(w.m.cfg.Probes), "leases")
	require.LessOrEqual(rt, w.last.reopenIn, w.m.cfg.MaxOpenFor)
}

func (w *walk) tell(rt *rapid.T, c counts, tokens ...string) {
	epoch := w.last.epoch - rapid.SampledFrom([]int64{0, 0, 0, 0, 1}).Draw(rt, "late")
	args := []any{epoch, c.healthy, c.unhealthy, c.slow}
	for _, token := range tokens {
		args = append(args, token)
	}
	w.say(rt, opFold, args, func() bool { return w.m.fold(epoch, c, tokens...) })
}

func (w *walk) fold(rt *rapid.T) {
	c := counts{rapid.Int64Range(0, 40).Draw(rt, "healthy"), rapid.Int64Range(0, 40).Draw(rt, "unhealthy"), 0}
	c.slow = rapid.Int64Range(0, c.healthy+c.unhealthy).Draw(rt, "slow")
	var renew []string
	if rapid.Bool().Draw(rt, "renew") {
		renew = w.m.tokens()
	}
	w.tell(rt, c, renew...)
}

func (w *walk) outage(rt *rapid.T) {
	w.tell(rt, counts{unhealthy: rapid.Int64Range(1, 10).Draw(rt, "unhealthy")})
}

func (w *walk) permit(rt *rapid.T) {
	w.issued++
	token := fmt.Sprintf("t%d", w.issued)
	w.say(rt, opPermit, []any{token}, func() bool { return w.m.permit(token) })
	if w.last.granted {
		w.epochs[token] = w.last.epoch
	}
}

func (w *walk) settle(rt *rapid.T) {
	token := fmt.Sprintf("t%d", rapid.IntRange(max(0, w.issued-3), w.issued).Draw(rt, "token"))
	epoch, o := w.epochs[token], outcome(rapid.IntRange(0, 2).Draw(rt, "outcome"))
	w.say(rt, opSettle, []any{token, epoch, uint8(o)}, func() bool { return w.m.settle(token, epoch, o) })
}

// probe is one that takes no time, so that half-open periods get long.
func (w *walk) probe(rt *rapid.T) {
	w.permit(rt)
	if !w.last.granted {
		return
	}
	token, o := fmt.Sprintf("t%d", w.issued), rapid.SampledFrom([]outcome{healthy, unhealthy, unhealthy}).Draw(rt, "outcome")
	w.say(rt, opSettle, []any{token, w.epochs[token], uint8(o)}, func() bool { return w.m.settle(token, w.epochs[token], o) })
}

func (w *walk) override(rt *rapid.T) {
	mode := Mode(rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(rt, "mode"))
	w.say(rt, opOverride, []any{uint8(mode)}, func() bool { return w.m.override(mode) })
}

func (w *walk) later(rt *rapid.T) {
	w.tick(w.m.now + rapid.Int64Range(0, 2*w.m.cfg.Window.Milliseconds()).Draw(rt, "later_ms"))
}

// reopen goes to the end of the open time, where most happens.
func (w *walk) reopen(*rapid.T) { w.tick(w.m.now + w.last.reopenIn.Milliseconds()) }

// back is a fail-over to a Redis whose clock is behind.
func (w *walk) back(rt *rapid.T) {
	if rapid.IntRange(0, 9).Draw(rt, "rarely") == 0 {
		w.tick(w.m.now - rapid.Int64Range(0, 100_000).Draw(rt, "back_ms"))
	}
}
