package tasks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
	"github.com/ferry-queue/ferry/internal/seal"
)

// BenchmarkSubmit is what POST /v1/jobs asks of Redis, beside asynq's bare Enqueue of the same body.
func BenchmarkSubmit(b *testing.B) {
	body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 200) + `"}]}`)
	b.Run("ferry", func(b *testing.B) {
		q := newBundle(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := q.Submit(context.Background(), Submission{Kind: openai.Chat, Upstream: "up", Model: "m", Request: body, Hash: "h"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("asynq", func(b *testing.B) {
		q := newBundle(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := q.client.Enqueue(asynq.NewTask("t", body)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSubmitDurability is what a job on disk costs its client: what Redis does before it answers, and
// what strict asks beside it.
func BenchmarkSubmitDurability(b *testing.B) {
	binary := waitAOFServer(b)
	for _, bb := range []struct {
		durability  Durability
		appendfsync string
	}{{Relaxed, "no"}, {Relaxed, "everysec"}, {Relaxed, "always"}, {Strict, "always"}} {
		b.Run(string(bb.durability)+"/"+bb.appendfsync, func(b *testing.B) {
			q := strictQueue(b, redistest.Start(b, binary, func(c *redisserver.Config) { c.AppendFsync = bb.appendfsync }), 0)
			q.durable.strict = bb.durability == Strict
			var took []time.Duration
			for b.Loop() {
				begun := time.Now()
				if _, _, err := q.Submit(context.Background(), keyed("")); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
		})
	}
}

// BenchmarkRun is a run without its HTTP call: claim, decide, store.
func BenchmarkRun(b *testing.B) {
	q := newBundle(b)
	h := q.handler(&upstream{answers: []answer{says(`{"choices":[]}`)}}, NewCalls())
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		id := q.submit(b).ID
		b.StartTimer()
		if err := runOnce(b, h, id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGet is a poll of a finished job with a 1 KB answer.
func BenchmarkGet(b *testing.B) {
	q := newBundle(b)
	id := q.submit(b).ID
	h := q.handler(&upstream{answers: []answer{says(`{"text":"` + strings.Repeat("word ", 200) + `"}`)}}, NewCalls())
	if err := runOnce(b, h, id); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.Get(context.Background(), id, Full); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThroughput is jobs from the queue to their end, without HTTP.
func BenchmarkThroughput(b *testing.B) {
	q := newBundle(b)
	const batch = 2000
	for b.Loop() {
		b.StopTimer()
		for range batch {
			q.submit(b)
		}
		b.StartTimer()
		up := &upstream{answers: []answer{says(`{"choices":[]}`)}}
		stop := q.serve(b, up, time.Second)
		for up.count() < batch {
			if err := sleep(b.Context(), time.Millisecond); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(batch)*float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// prose is n bytes of JSON with text that compresses about as well as people's do.
func prose(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 2000)
	for i := range words {
		word := make([]byte, 2+rnd.IntN(8))
		for j := range word {
			word[j] = "etaoinshrdlucmfw"[rnd.IntN(16)]
		}
		words[i] = string(word)
	}
	text := []byte(`{"model":"m","messages":[{"role":"user","content":"`)
	for len(text) < n {
		text = append(append(text, words[int(rnd.ExpFloat64()*250)%len(words)]...), ' ')
	}
	return append(text, `"}]}`...)
}

// BenchmarkCodec is what it costs to make the stored form of a body and to read it, with encryption and without.
func BenchmarkCodec(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10} {
		for _, ring := range []*seal.Ring{nil, ringOf(b, '1')} {
			body := prose(size)
			b.Run(fmt.Sprintf("size=%dKB/sealed=%t", size>>10, ring != nil), func(b *testing.B) { benchmarkCodec(b, ring, body) })
		}
	}
}

func benchmarkCodec(b *testing.B, ring *seal.Ring, body []byte) {
	c, err := newCodec(ring)
	if err != nil {
		b.Fatal(err)
	}
	packed := c.pack("job_1", fieldBody, body)
	b.Run("pack", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.pack("job_1", fieldBody, body)
		}
		b.ReportMetric(float64(len(packed))/float64(len(body)), "stored/body")
	})
	b.Run("unpack", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.unpack("job_1", fieldBody, packed); err != nil {
				b.Fatal(err)
			}
		}
	})
}
