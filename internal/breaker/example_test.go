package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/breaker"
)

// A fuse opens after three failures in a row, refuses, says for how long, and
// lets one probe through afterwards.
func ExampleLocal_Run() {
	fuse, err := breaker.NewLocal(breaker.LocalConfig{Name: "openai", Failures: 3, Successes: 1, OpenFor: 50 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	for range 3 {
		fmt.Println(fuse.Run(func() error { return errors.New("503 Service Unavailable") }))
	}
	err = fuse.Run(func() error { return nil })
	var refused *breaker.OpenError
	fmt.Println(errors.As(err, &refused), refused.State)

	for errors.As(err, &refused) {
		<-time.After(refused.RetryAfter())
		err = fuse.Run(func() error { return nil })
	}
	fmt.Println(err, fuse.State())
	// Output:
	// 503 Service Unavailable
	// 503 Service Unavailable
	// 503 Service Unavailable
	// true open
	// <nil> closed
}

// Two workers, one verdict: what the first sees stops the second.
func ExampleShared_Run() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	ctx, stop := context.WithCancel(context.Background())

	changes := make(chan breaker.Change, 2)
	cfg := breaker.Config{Name: "openai", OnChange: func(c breaker.Change) { changes <- c }}
	var workers [2]*breaker.Shared
	ended := make(chan error, len(workers))
	for i := range workers {
		if workers[i], err = breaker.New(rdb, cfg); err != nil {
			panic(err)
		}
		go func() { ended <- workers[i].Sync(ctx) }()
		for !workers[i].Status().Fleet { // it has not heard from Redis yet
			<-time.After(time.Millisecond)
		}
	}

	for range 20 {
		_ = workers[0].Run(func() error { return errors.New("503 Service Unavailable") })
	}
	for range workers {
		c := <-changes
		fmt.Printf("%s -> %s: %s, %d of %d failed\n", c.From, c.State, c.Reason, c.Failures, c.Calls)
	}
	err = workers[1].Run(func() error { return nil })
	var refused *breaker.OpenError
	fmt.Println(errors.As(err, &refused), refused.State, refused.RetryAfter() > 3*time.Second) // of 5 s, jitter and poll taken off

	stop()
	for range workers {
		fmt.Println(<-ended)
	}
	// Output:
	// closed -> open: hard_failures, 20 of 20 failed
	// closed -> open: hard_failures, 20 of 20 failed
	// true open true
	// <nil>
	// <nil>
}
