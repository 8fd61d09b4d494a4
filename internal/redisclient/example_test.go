package redisclient_test

import (
	"fmt"

	"github.com/ferry-queue/ferry/internal/redisclient"
)

func ExampleParse() {
	for _, url := range []string{
		"redis://:secret@10.0.0.7:6379/2",
		"redis://a:6379,b:6379,c:6379",
		"redis-sentinel://:secret@a,b,c/0?master=ferry",
		"redis://:not%zzencoded@10.0.0.7",
	} {
		opts, err := redisclient.Parse(url)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%v %d %q\n", opts.Addrs, opts.DB, opts.MasterName)
	}
	// Output:
	// [10.0.0.7:6379] 2 ""
	// [a:6379 b:6379 c:6379] 0 ""
	// [a:26379 b:26379 c:26379] 0 "ferry"
	// redis url: not a URL (is a character in the password not percent-encoded?)
}
