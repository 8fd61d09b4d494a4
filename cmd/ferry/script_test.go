package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ferry": main})
}

// Each script in testdata/script is one behaviour of the command line. Beside testscript's own commands:
//
//	reply STATUS FILE [HEADER=VALUE]...   the fake server's answer to one request, in this order
//	reply drop                            instead, cut the connection
//	reply hold                            instead, hold the answer until the client goes
//	seen N                                wait until the server has had N requests
//	stop                                  stop the server
//
// In a reply, {{ago "3m"}} and {{in "10s"}} are times. The file requests lists what the server got.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			fake := newFakeAPI(filepath.Join(env.WorkDir, "requests"))
			env.Defer(fake.Close)
			env.Setenv("FERRY_URL", fake.URL)
			env.Setenv("FERRY_API_KEY", "key-1")
			env.Values[fakeAPI{}] = fake
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"reply": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(fakeOf(ts).queue(args, func(name string) string { return ts.ReadFile(name) }))
			},
			"seen": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.Atoi(args[0])
				ts.Check(err)
				fakeOf(ts).await(n)
			},
			"stop": func(ts *testscript.TestScript, _ bool, _ []string) { fakeOf(ts).Close() },
		},
	})
}

func fakeOf(ts *testscript.TestScript) *fakeAPI {
	return ts.Value(fakeAPI{}).(*fakeAPI)
}

// fakeAPI is a server that gives the replies of a script and records the requests.
type fakeAPI struct {
	*httptest.Server
	replies chan http.HandlerFunc
	log     string

	mu   sync.Mutex // guards seen and the log
	more *sync.Cond // seen has grown
	seen int
}

func newFakeAPI(log string) *fakeAPI {
	fake := &fakeAPI{replies: make(chan http.HandlerFunc, 100), log: log}
	fake.more = sync.NewCond(&fake.mu)
	fake.Server = httptest.NewServer(fake)
	return fake
}

// ServeHTTP records the request and gives the next reply.
func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.record(r)
	select {
	case reply := <-f.replies:
		reply(w, r)
	default:
		http.Error(w, `{"error":{"message":"the script has no reply left"}}`, http.StatusNotImplemented)
	}
}

// record appends the request to the log.
func (f *fakeAPI) record(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	out, err := os.OpenFile(f.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s %s %s\n%s", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), body)
		_ = out.Close() // err has what matters
	}
	if err != nil {
		panic(err)
	}
	if key := r.Header.Get("Idempotency-Key"); key == "" && r.Method == http.MethodPost && r.URL.Path == "/v1/jobs" {
		panic("a submit without a key")
	}
	f.seen++
	f.more.Broadcast()
}

// await returns when n requests have come.
func (f *fakeAPI) await(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.seen < n {
		f.more.Wait()
	}
}

// queue adds the reply that a script's line asks for.
func (f *fakeAPI) queue(args []string, read func(string) string) error {
	switch {
	case len(args) == 1 && args[0] == "drop":
		f.replies <- func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		return nil
	case len(args) == 1 && args[0] == "hold":
		f.replies <- func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		return nil
	case len(args) < 2:
		return fmt.Errorf("reply: want STATUS FILE, drop or hold, got %q", args)
	}
	status, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	body, err := expand(read(args[1]))
	f.replies <- func(w http.ResponseWriter, _ *http.Request) {
		for _, header := range args[2:] {
			name, value, _ := strings.Cut(header, "=")
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = w.Write(body) // a client that is gone fails the script
	}
	return err
}

// expand fills in the times of a reply.
func expand(text string) ([]byte, error) {
	shift := func(sign time.Duration) func(string) (string, error) {
		return func(s string) (string, error) {
			d, err := time.ParseDuration(s)
			return time.Now().Add(sign * d).UTC().Format(time.RFC3339Nano), err
		}
	}
	t, err := template.New("").Funcs(template.FuncMap{"ago": shift(-1), "in": shift(1)}).Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, nil)
	return bytes.TrimSpace(b.Bytes()), err
}
