// Package dashboard is asynqmon, made fit to be shown: it has no authentication, no protection against
// requests forged by other sites, and no bound on its pages. The caller adds the first; this package the
// others.
package dashboard

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/redis/go-redis/v9"
)

// Mode is how much of asynqmon is offered.
type Mode string

// The modes.
const (
	Off      Mode = "off"
	ReadOnly Mode = "readonly" // looks only
	Full     Mode = "full"     // may also run, archive and delete tasks, and pause queues
)

// Valid reports whether m is one of the modes.
func (m Mode) Valid() bool { return m == Off || m == ReadOnly || m == Full }

// Root is the path the dashboard expects to be mounted at.
const Root = "/dashboard"

// maxPage is the largest page asynqmon is let make: it would make one of any size.
const maxPage = 100

// contentPolicy allows what asynqmon's page consists of, and nothing from elsewhere but the fonts it
// asks for; without them it falls back to the system's.
const contentPolicy = "default-src 'self'; script-src 'self' 'unsafe-inline'; " +
	"style-src 'self' 'unsafe-inline' https://fonts.googleapis.com; font-src 'self' https://fonts.gstatic.com; " +
	"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// connection lends asynqmon our client.
type connection struct{ redis.UniversalClient }

var _ asynq.RedisConnOpt = connection{}

// MakeRedisClient returns the client.
func (c connection) MakeRedisClient() any { return c.UniversalClient }

// New returns the dashboard on a client. mode is ReadOnly or Full.
func New(rdb redis.UniversalClient, mode Mode) (http.Handler, error) {
	if mode != ReadOnly && mode != Full {
		return nil, fmt.Errorf("dashboard: mode %q is not one of readonly, full", mode)
	}
	mon := asynqmon.New(asynqmon.Options{
		RootPath: Root, RedisConnOpt: connection{rdb}, ReadOnly: mode == ReadOnly,
		// A payload is a job's ID; whatever else another program may have put there stays hidden.
		PayloadFormatter: asynqmon.PayloadFormatterFunc(func(_ string, payload []byte) string { return shown(payload) }),
		ResultFormatter:  asynqmon.ResultFormatterFunc(func(string, []byte) string { return "[hidden]" }),
	})
	return http.NewCrossOriginProtection().Handler(guard(mon)), nil
}

// shown is a payload if it is one of ours: short, and with a job ID in it.
func shown(payload []byte) string {
	if text := string(payload); len(text) < 100 && strings.Contains(text, `"job":"job_`) {
		return text
	}
	return "[hidden]"
}

func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		switch path := r.URL.Path; {
		case strings.HasSuffix(path, ".map"):
			http.NotFound(w, r)
			return
		case strings.HasPrefix(path, Root+"/api/"):
			h.Set("Cache-Control", "no-store")
			r = capPage(r)
		}
		next.ServeHTTP(w, r)
	})
}

// capPage bounds the size parameter.
func capPage(r *http.Request) *http.Request {
	q := r.URL.Query()
	if n, err := strconv.Atoi(q.Get("size")); err != nil || n <= maxPage {
		return r
	}
	q.Set("size", strconv.Itoa(maxPage))
	r = r.Clone(r.Context())
	r.URL.RawQuery = q.Encode()
	return r
}
