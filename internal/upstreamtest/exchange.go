package upstreamtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// maxBody is the longest request body taken, in bytes.
const maxBody = 64 << 20

// exchange is one request and what becomes of it.
type exchange struct {
	s  *Server
	w  http.ResponseWriter
	rc *http.ResponseController
	r  *http.Request

	req     request
	problem *problem // found while reading the request
	job     string
	n       uint64 // number of the request, from 1
	plan    plan
	down    <-chan struct{}
	record  *Record // guarded by Server.mu once begin has entered it
	tally   *Tally  // likewise
	status  int
	whole   bool // the answer was written to its end
}

// ServeHTTP answers or fails one request. Faults that break a connection need a
// server whose connections can be hijacked (HTTP/1); elsewhere they panic with
// [http.ErrAbortHandler], which does the same for HTTP/2.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := s.read(w, r)
	if !s.begin(x) {
		x.drop(true)
		return
	}
	defer s.end(x)
	if !x.sleep(x.plan.wait) || x.interrupt() {
		return
	}
	if p := x.check(); p != nil {
		x.refuse(p)
		return
	}
	x.answer()
}

// read takes the request off the wire. What is wrong with it is answered later:
// a server that is down would not have looked.
func (s *Server) read(w http.ResponseWriter, r *http.Request) *exchange {
	x := &exchange{s: s, w: w, rc: http.NewResponseController(w), r: r}
	var body bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= maxBody {
		body.Grow(int(n) + bytes.MinRead) // or ReadFrom doubles it to find the end
	}
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		x.problem = problemTooLong()
	} else if err != nil {
		x.problem = problemJSON(err)
	}
	x.record = &Record{
		Time: time.Now(), Method: r.Method, Path: r.URL.Path, Key: r.Header.Get("Idempotency-Key"),
		Header: r.Header, Body: body.Bytes(),
	}
	x.job = jobOf(r, body.Bytes())
	if x.problem == nil && r.Method == http.MethodPost {
		if err := json.Unmarshal(body.Bytes(), &x.req); err != nil {
			x.problem = problemJSON(err)
		}
	}
	return x
}

// begin enters x into the books and plans it. It reports false when s is down.
func (s *Server) begin(x *exchange) bool {
	own, err := x.ownFaults()
	if err != nil {
		x.problem = problemSimulate(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDown {
		s.refused++
		return false
	}
	s.requests++
	s.inFlight++
	s.maxInFlight = max(s.maxInFlight, s.inFlight)
	x.tally = s.journal.tally(x.job)
	x.tally.Requests++
	x.n, x.down = uint64(s.requests), s.down
	x.plan = s.planLocked(x, own, x.tally.Requests)
	x.record.Attempt, x.record.Fault = x.tally.Requests, x.plan.fault
	if c, ok := x.r.Context().Value(connectionKey{}).(*connection); ok {
		c.requests++
		x.record.Reused = c.requests > 1
	}
	s.journal.add(x.record)
	return true
}

// ownFaults returns the faults a request asks for, nil when it leaves that to
// the server.
func (x *exchange) ownFaults() (*Faults, error) {
	spec := x.r.Header.Values("X-Simulate")
	if len(spec) == 0 && x.req.Simulate != nil {
		spec = []string{*x.req.Simulate}
	}
	if len(spec) == 0 {
		return nil, nil
	}
	f, err := ParseFaults(spec[0])
	return &f, err
}

// planLocked asks the script, then the request, then the server's faults. The
// draw depends on the seed and the request's number only, so a run of n requests
// meets the same faults in whatever order they come.
func (s *Server) planLocked(x *exchange, own *Faults, attempt int) plan {
	if len(s.script) > 0 && x.r.Method == http.MethodPost {
		step := s.script[0]
		s.script = s.script[1:]
		p := plan{fault: step.Fault, wait: step.Latency, retryAfter: step.RetryAfter, slowFor: defaultSlowFor}
		if step.Status > 0 {
			p.raw = &step
		}
		return p
	}
	faults := s.faults
	if own != nil {
		faults = *own
	}
	return faults.draw(attempt, rand.New(rand.NewPCG(s.cfg.Seed, x.n)))
}

func (s *Server) end(x *exchange) {
	took := max(time.Since(x.record.Time), 1)
	s.mu.Lock()
	s.inFlight--
	x.record.Status, x.record.Duration = x.status, took
	if x.whole && x.status == http.StatusOK && x.plan.fault != Garbage {
		x.tally.Answers++
	}
	s.mu.Unlock()
	if s.cfg.Logger != nil {
		s.cfg.Logger.LogAttrs(x.r.Context(), slog.LevelInfo, "simulated upstream",
			slog.String("path", x.record.Path), slog.String("key", x.record.Key), slog.Int("attempt", x.record.Attempt),
			slog.Int("status", x.status), slog.String("fault", string(x.plan.fault)), slog.Duration("took", took))
	}
}

// sleep waits for d. It reports false when there is nobody left to answer: the
// client has gone, or the server went down and has dropped the connection.
func (x *exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
		return false
	case <-x.down:
		x.drop(true)
		return false
	}
}

// interrupt does the faults that take the place of an answer. It reports whether
// it did one.
func (x *exchange) interrupt() bool {
	if step := x.plan.raw; step != nil {
		for name, values := range step.Header {
			x.w.Header()[http.CanonicalHeaderKey(name)] = values
		}
		x.write(step.Status, step.Header.Get("Content-Type"), []byte(step.Body))
		return true
	}
	switch x.plan.fault {
	case None, Cut, CutStream, Garbage, SlowBody:
		return false
	case Timeout:
		if x.sleep(x.s.cfg.HangFor) {
			x.drop(false)
		}
	case Reset:
		x.drop(true)
	case EOF:
		x.drop(false)
	case HTML:
		x.write(http.StatusBadGateway, "text/html", []byte(badGateway))
	case Quota:
		x.rateLimitHeaders()
		x.refuse(problemQuota())
	default:
		x.refuseStatus()
	}
	return true
}

const badGateway = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n" +
	"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"

// refuseStatus answers with the status code that the fault is. A kind that
// ParseFaults would have refused is a 500, so that it does not pass unnoticed.
func (x *exchange) refuseStatus() {
	code, ok := x.plan.fault.status()
	switch {
	case !ok:
		x.refuse(&problem{
			status: http.StatusInternalServerError, Type: "server_error",
			Message: fmt.Sprintf("upstreamtest: there is no fault %q.", x.plan.fault),
		})
		return
	case code == http.StatusTooManyRequests:
		x.rateLimitHeaders()
	case code == http.StatusServiceUnavailable && x.plan.retryAfter > 0:
		x.retryAfterHeaders(x.plan.retryAfter)
	}
	x.refuse(problemStatus(code))
}

// rateLimitHeaders are OpenAI's on 429.
func (x *exchange) rateLimitHeaders() {
	h, wait := x.w.Header(), x.plan.retryAfter
	if wait == 0 {
		wait = time.Second
	}
	h.Set("X-Ratelimit-Limit-Requests", "30000")
	h.Set("X-Ratelimit-Remaining-Requests", "0")
	h.Set("X-Ratelimit-Reset-Requests", wait.String())
	h.Set("X-Ratelimit-Limit-Tokens", "150000000")
	h.Set("X-Ratelimit-Remaining-Tokens", "149984992")
	h.Set("X-Ratelimit-Reset-Tokens", "6ms")
	if x.plan.fault != Quota { // no wait would help
		x.retryAfterHeaders(wait)
	}
}

// retryAfterHeaders says how long to wait, in whole seconds (RFC 9110, section
// 10.2.3) and in OpenAI's milliseconds.
func (x *exchange) retryAfterHeaders(wait time.Duration) {
	x.w.Header().Set("Retry-After", strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10))
	x.w.Header().Set("Retry-After-Ms", strconv.FormatInt(wait.Milliseconds(), 10))
}

// refuse answers with OpenAI's error envelope.
func (x *exchange) refuse(p *problem) {
	x.write(p.status, "application/json", p.envelope())
}

// header sets the headers of every answer and its status.
func (x *exchange) header(status int, contentType string) {
	h := x.w.Header()
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	h.Set("X-Request-Id", x.id("req_"))
	h.Set("Openai-Processing-Ms", strconv.FormatInt(time.Since(x.record.Time).Milliseconds(), 10))
	h.Set("Openai-Version", "2020-10-01")
	x.status = status
	x.w.WriteHeader(status)
}

// id makes an identifier that is the same for request n in every run.
func (x *exchange) id(prefix string) string {
	g := rand.NewPCG(^x.s.cfg.Seed, x.n)
	return fmt.Sprintf("%s%016x%08x", prefix, g.Uint64(), uint32(g.Uint64()))
}

// write sends a whole answer that no fault touches.
func (x *exchange) write(status int, contentType string, body []byte) {
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.header(status, contentType)
	_, err := x.w.Write(body)
	x.whole = err == nil
}

// drips is the number of pieces a slow body comes in.
const drips = 10

// writeJSON sends a successful answer, with the faults that lie in its body.
func (x *exchange) writeJSON(v any) {
	body, err := json.Marshal(v)
	if err != nil { // our own types always encode
		panic(fmt.Errorf("upstreamtest: answer: %w", err))
	}
	const contentType = "application/json"
	switch half := body[:len(body)/2]; x.plan.fault {
	case Garbage:
		x.write(http.StatusOK, contentType, half)
	case Cut, CutStream:
		x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		x.header(http.StatusOK, contentType)
		x.breakOff(half)
	case SlowBody:
		x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		x.header(http.StatusOK, contentType)
		x.whole = x.drip(body)
	default:
		x.write(http.StatusOK, contentType, body)
	}
}

// drip writes body in pieces, at even intervals.
func (x *exchange) drip(body []byte) bool {
	size := max(1, (len(body)+drips-1)/drips)
	for len(body) > 0 {
		n := min(size, len(body))
		if !x.flush(body[:n]) || !x.sleep(x.plan.slowFor/drips) {
			return false
		}
		body = body[n:]
	}
	return true
}

// writeEvents sends a stream, one event after the other with pause in between,
// with the faults that lie in a stream.
func (x *exchange) writeEvents(events [][]byte, pause time.Duration) {
	x.w.Header().Set("Cache-Control", "no-cache")
	x.header(http.StatusOK, "text/event-stream; charset=utf-8")
	end, half := len(events), len(events)/2
	switch x.plan.fault {
	case Garbage:
		events[half] = append(bytes.Clone(events[half][:len(events[half])/2]), "\n\n"...)
	case Cut, CutStream:
		end = half
	case SlowBody:
		pause = x.plan.slowFor / time.Duration(len(events))
	default:
	}
	for i, event := range events[:end] {
		if i > 0 && !x.sleep(pause) {
			return
		}
		// Without a pause the events go out together: only the first must not wait.
		if i > 0 && pause == 0 {
			if _, err := x.w.Write(event); err != nil {
				return
			}
		} else if !x.flush(event) {
			return
		}
	}
	if x.plan.fault == Cut {
		x.breakOff(events[half][:len(events[half])/2])
	}
	x.whole = end == len(events)
}

func (x *exchange) flush(p []byte) bool {
	_, err := x.w.Write(p)
	return err == nil && x.rc.Flush() == nil
}

// breakOff sends p and closes the connection before the announced end.
func (x *exchange) breakOff(p []byte) {
	x.flush(p)
	x.drop(false)
}

// drop ends the connection without an answer, or without the rest of one: by a
// TCP reset or by an orderly close.
func (x *exchange) drop(byReset bool) {
	conn, _, err := x.rc.Hijack()
	switch {
	case err != nil:
		panic(http.ErrAbortHandler) // net/http ends an HTTP/2 stream so
	case byReset:
		reset(conn)
	default:
		_ = conn.Close() // nothing was promised
	}
}
