package tasks

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/ferry-queue/ferry/internal/openai"
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
