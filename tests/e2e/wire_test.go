package e2e_test

import (
	"context"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// wire is what lies between the programs and redis-server. It can swallow everything, as a network does whose
// packets get lost: connections stay open and new ones are accepted, but nothing answers.
type wire struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

// startWire lays a wire to an address. It goes with the test.
func startWire(t *testing.T, to string) *wire {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, "redis", "127.0.0.1:0", to)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	return &wire{t, proxy}
}

// url is the address of a Redis at the other end.
func (w *wire) url() string { return "redis://" + w.proxy.Listen + "/0" }

// swallow loses every byte from now on. "upstream" are commands, "downstream" are replies.
func (w *wire) swallow(directions ...string) {
	w.t.Helper()
	for _, direction := range directions {
		toxic := `{"type": "timeout", "stream": "` + direction + `", "attributes": {"timeout": 0}}`
		if _, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// heal ends swallow. The connections of that time break, and new ones work.
func (w *wire) heal() { w.proxy.Toxics.ResetToxics(context.Background()) }
