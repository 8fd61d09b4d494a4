package redisserver_test

import (
	"context"
	"fmt"
	"os"

	"github.com/ferry-queue/ferry/internal/redisserver"
)

// A private Redis whose data is still there the next time.
func Example() {
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }() // a leftover in the temporary directory does no harm

	ctx := context.Background()
	s, err := redisserver.Start(ctx, redisserver.Config{Dir: dir, AppendOnly: true})
	if err != nil { // errors.Is(err, redisserver.ErrNotInstalled): fall back, or say so
		fmt.Println(err)
		return
	}
	fmt.Println(s.URL() == "redis://"+s.Addr()+"/0")
	fmt.Println(s.Stop(ctx))
	// Output:
	// true
	// <nil>
}
