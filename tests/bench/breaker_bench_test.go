package bench

import (
	"context"
	"errors"
	"testing"
	"time"

	resiliency "github.com/eapache/go-resiliency/breaker"
	failsafego "github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	ferrybreaker "github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// BenchmarkBreaker is the price of one call through a closed breaker, which every call of a healthy upstream pays.
// All but "resiliency" and "local", which count failures in a row, judge a failing share over 10 s; only "ferry" does
// so for a fleet. "one" is a caller alone, "all" as many callers as there are processors.
func BenchmarkBreaker(b *testing.B) {
	for _, c := range breakers(b) {
		b.Run("one/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c.run(succeed) != nil {
					b.Fail()
				}
			}
		})
		b.Run("all/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if c.run(succeed) != nil {
						b.Fail()
					}
				}
			})
		})
	}
}

func succeed() error { return nil }

type guard struct {
	name string
	run  func(work func() error) error
}

func breakers(b *testing.B) []guard {
	return []guard{
		{"ferry", shared(b)},
		{"local", local(b)},
		{"resiliency", resiliency.New(20, 3, 5*time.Second).Run},
		{"gobreaker", sony()},
		{"failsafe", failsafeRate()},
	}
}

// shared is the breaker of a worker that has heard from Redis and goes on exchanging with it.
func shared(b *testing.B) func(func() error) error {
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr(), ContextTimeoutEnabled: true})
	s, err := ferrybreaker.New(rdb, ferrybreaker.Config{Name: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Sync(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, rdb.Close()); err != nil {
			b.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !s.Status().Fleet; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("Redis is not heard")
		}
	}
	return s.Run
}

func local(b *testing.B) func(func() error) error {
	l, err := ferrybreaker.NewLocal(ferrybreaker.LocalConfig{})
	if err != nil {
		b.Fatal(err)
	}
	return l.Run
}

func sony() func(func() error) error {
	cb := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: 10 * time.Second, BucketPeriod: 500 * time.Millisecond,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.Requests >= 20 && float64(c.TotalFailures) >= 0.6*float64(c.Requests)
		},
	})
	return func(work func() error) error {
		_, err := cb.Execute(func() (struct{}, error) { return struct{}{}, work() })
		return err
	}
}

func failsafeRate() func(func() error) error {
	cb := circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.6, 20, 10*time.Second).Build()
	return failsafego.With[any](cb).Run
}
