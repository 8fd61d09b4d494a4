package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

// sickConfig gives an attempt 3 s, asks soon again, and lets idle connections go soon.
const sickConfig = `
worker: {concurrency: 32}
jobs:
  max_attempts: 50
  backoff: {base: 200ms, max: 2s}
upstreams:
  - name: sim
    base_url: $UPSTREAM
    pool: {idle_timeout: 1s}
    breaker: {open_for: 500ms, max_open_for: 1s, ramp: 1s}
    policies:
      chat:
        first_byte: 3s
        attempt: 3s
        backoff: {base: 20ms, max: 200ms}
`

// An upstream that fails in whatever way costs time, but no job, and leaves nothing open in a worker.
func TestFaultUpstream(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, kind := range []upstreamtest.Kind{upstreamtest.Timeout, upstreamtest.Reset, upstreamtest.SlowBody, upstreamtest.Garbage} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it mostly waits
			fault{
				name: "upstream_" + string(kind), jobs: fewer(),
				options: options{apis: 2, workers: 2, config: sickConfig, upstream: upstreamtest.Config{
					Faults: upstreamtest.MustParseFaults("latency=200ms"),
				}},
				strike: func(s *system) {
					s.upstream.SetFaults(upstreamtest.Faults{Shares: []upstreamtest.Share{{Kind: kind, Share: 1}}})
					pass(s.t, long(5*time.Second, 30*time.Second))
					s.upstream.SetFaults(upstreamtest.MustParseFaults("latency=200ms"))
				},
				also: (*row).wantNothingLeftOpen,
			}.run(t)
		})
	}
}

// wantNothingLeftOpen compares the workers with one that has done nothing yet.
func (r *row) wantNothingLeftOpen() {
	r.t.Helper()
	const slack = 10 // those of the runtime, and of connections to Redis
	fresh := r.startWorker()
	fresh.await(r.t, workerAddress)
	for _, w := range r.workers {
		until(r.t, 15*time.Second, w.name+" has closed what it opened", func() bool {
			return r.metric(w, "ferry_pool_open_connections") == 0 && r.metric(w, "ferry_calls_in_flight") == 0 &&
				r.metric(w, "go_goroutines") <= r.metric(fresh, "go_goroutines")+slack
		})
	}
}

// metric is the sum of a worker's metric over its labels.
func (s *system) metric(w *process, name string) (sum float64) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+w.await(s.t, workerAddress)+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		value, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			s.t.Fatal(err)
		}
		sum += value
	}
	return sum
}

// A certificate that does not verify is for a person to mend, not for time to heal: the job that meets it fails, and
// a line in the log calls for help. The breaker spares the others until it is mended.
func TestFaultUpstreamCertificate(t *testing.T) {
	t.Parallel() // it mostly waits
	needProcesses(t)
	front := startTLS(t)
	s := start(t, options{
		apis: 2, workers: 2, config: strings.ReplaceAll(sickConfig, "$UPSTREAM", front.URL+"/v1"),
		env: []string{"SSL_CERT_FILE=" + front.roots},
	})
	front.to.Store(s.upstream)
	front.expired.Store(true)
	const n = 300
	jobs := s.submitAll(n, func(i int) client.SubmitRequest { return chat(fmt.Sprintf("job %d", i), "") })
	pass(t, 5*time.Second)
	front.expired.Store(false)

	var again []*client.Job
	for _, job := range s.waitAll(jobs, time.Minute) {
		if job.State == client.StateSucceeded {
			continue
		}
		if job.State != client.StateFailed || job.Error == nil || job.Error.Code != "tls_certificate" || len(job.Ledger) != 1 {
			t.Fatalf("a job that met a bad certificate is not failed for that after one attempt:\n%s", show(job))
		}
		retried, err := s.client().Retry(t.Context(), job.ID)
		if err != nil {
			t.Fatal(err)
		}
		again = append(again, retried)
	}
	if len(again) == 0 || len(again) > n/2 {
		t.Errorf("%d of %d jobs failed, want some, and the breaker to spare the others", len(again), n)
	}
	wantState(t, s.waitAll(again, time.Minute), client.StateSucceeded)
	t.Logf("FIGURE fault=upstream_certificate accepted=%d ended=%d lost=0 failed=%d succeeded_when_retried=%d",
		n, n, len(again), len(again))
	loud := regexp.MustCompile(`"level":"(?:WARN|ERROR)".*tls_certificate`)
	if !loud.MatchString(s.workers[0].output() + s.workers[1].output()) {
		t.Error("no warning in the workers' logs names tls_certificate")
	}
}

// tlsFront serves a simulated upstream over TLS.
type tlsFront struct {
	*httptest.Server
	roots   string // file with the certificates to trust
	expired atomic.Bool
	to      atomic.Pointer[upstreamtest.Server]
}

func startTLS(t *testing.T) *tlsFront {
	t.Helper()
	f := new(tlsFront)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.to.Load().ServeHTTP(w, r)
	}))
	expired := &tls.Config{Certificates: []tls.Certificate{expiredCertificate(t)}}
	f.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if f.expired.Load() {
			return expired, nil
		}
		return nil, nil // the server's own
	}}
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	f.roots = filepath.Join(t.TempDir(), "roots.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: expired.Certificates[0].Certificate[0]})...)
	if err := os.WriteFile(f.roots, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// expiredCertificate is right for the loopback address but for its time.
func expiredCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "expired"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
