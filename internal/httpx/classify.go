package httpx

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// Outcome is what one attempt came to: a response, an error, or both when the body broke off.
type Outcome struct {
	Status int         // 0 without a response
	Header http.Header // nil without a response
	Body   []byte      // what arrived of the body
	Err    error       // nil when the response is complete
	Sent   bool        // something was written to a connection
}

// Verdict is what an Outcome means.
type Verdict struct {
	Class          Class
	Reason         string        // from a closed set, fit for a metric label
	Wait           time.Duration // the upstream's own wish, uncapped; 0 without one
	OutcomeUnknown bool          // the request may have taken effect although no answer came
	Unhealthy      bool          // counts against the upstream in the breaker
}

// Classify is the default classifier. It is total: every outcome gets a class other than Unclassified, and no text of
// an error or body is looked at. A classifier that knows the upstream's envelope wraps it:
//
//	func(o httpx.Outcome) httpx.Verdict {
//		v := httpx.Classify(o)
//		if o.Status == 429 && quotaIsGone(o.Body) {
//			v.Class, v.Reason = httpx.Permanent, "insufficient_quota"
//		}
//		return v
//	}
func Classify(o Outcome) Verdict {
	if o.Err != nil {
		v := classifyError(o)
		v.OutcomeUnknown = o.Sent
		return v
	}
	v := classifyStatus(o.Status)
	if v.Class == OK {
		return v
	}
	v.Reason = "http_" + strconv.Itoa(o.Status)
	obeyShouldRetry(&v, o)
	if v.Class.Retryable() {
		v.Wait = retryHint(o.Header)
	}
	if o.Status == http.StatusTooManyRequests && v.Class == Throttled && v.Wait == 0 {
		v.Wait = rateReset(o.Header)
	}
	if v.Wait > 0 && (o.Status == http.StatusServiceUnavailable || o.Status == statusOverloaded) {
		v.Class = Throttled
	}
	return v
}

const (
	statusOverloaded = 529 // Anthropic and others: overloaded
	statusCloudflare = 520 // 520 to 530: Cloudflare could not get an answer from the origin
)

// classifyStatus is the table of statuses without their headers. A gateway's 502, 504, 520 and 524 leave open whether
// the origin did the work.
func classifyStatus(status int) Verdict {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly:
		return Verdict{Class: Transient}
	case http.StatusTooManyRequests:
		return Verdict{Class: Throttled}
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return Verdict{Class: Permanent}
	case http.StatusBadGateway, http.StatusGatewayTimeout, statusCloudflare, 524:
		return Verdict{Class: Transient, Unhealthy: true, OutcomeUnknown: true}
	}
	switch {
	case status >= 200 && status < 300:
		return Verdict{Class: OK, Reason: "ok"}
	case status >= 500 && status < 600:
		return Verdict{Class: Transient, Unhealthy: true}
	}
	return Verdict{Class: Permanent} // 4xx; 1xx and 3xx too: a redirect is never followed, it would carry the key elsewhere
}

// obeyShouldRetry applies x-should-retry, with which an upstream overrules the status (as the OpenAI SDKs do).
func obeyShouldRetry(v *Verdict, o Outcome) {
	switch o.Header.Get("X-Should-Retry") {
	case "true":
		if v.Class == Permanent {
			v.Class = Transient
		}
	case "false":
		v.Class = Permanent
	}
}

// errorKinds lists errors with a fixed verdict; the first match wins.
var errorKinds = []struct {
	is      error
	verdict Verdict
}{
	{ErrBadRequest, Verdict{Class: Permanent, Reason: "bad_request"}},
	{ErrBodyTooLarge, Verdict{Class: Permanent, Reason: "body_too_large"}},
	{ErrStream, Verdict{Class: Canceled, Reason: "stream_refused"}},
	{ErrClosed, Verdict{Class: Refused, Reason: "closed"}},
	{ErrPoolTimeout, Verdict{Class: Refused, Reason: "pool_exhausted"}},
	{ErrDialTimeout, Verdict{Class: Transient, Reason: "timeout_dial", Unhealthy: true}},
	{ErrTLSTimeout, Verdict{Class: Transient, Reason: "timeout_tls", Unhealthy: true}},
	{ErrFirstByteTimeout, Verdict{Class: Transient, Reason: "timeout_first_byte", Unhealthy: true}},
	{ErrIdleTimeout, Verdict{Class: Transient, Reason: "timeout_idle", Unhealthy: true}},
	{ErrAttemptTimeout, Verdict{Class: Transient, Reason: "timeout_attempt", Unhealthy: true}},
	// An attempt that starts late in the call has little time left: no proof of a sick upstream.
	{ErrTotalTimeout, Verdict{Class: Transient, Reason: "timeout_total"}},
	// Out of descriptors: our own limit, nothing was sent, and no upstream is to blame.
	{syscall.EMFILE, Verdict{Class: Refused, Reason: "out_of_descriptors"}},
	{syscall.ENFILE, Verdict{Class: Refused, Reason: "out_of_descriptors"}},
	{gzip.ErrHeader, Verdict{Class: Transient, Reason: "broken_encoding", Unhealthy: true}},
	{gzip.ErrChecksum, Verdict{Class: Transient, Reason: "broken_encoding", Unhealthy: true}},
	{http.ErrSchemeMismatch, Verdict{Class: Permanent, Reason: "tls_not_spoken", Unhealthy: true}},
	{syscall.ECONNREFUSED, Verdict{Class: Transient, Reason: "connection_refused", Unhealthy: true}},
	{syscall.EHOSTUNREACH, Verdict{Class: Transient, Reason: "unreachable", Unhealthy: true}},
	{syscall.ENETUNREACH, Verdict{Class: Transient, Reason: "unreachable", Unhealthy: true}},
}

// lossKinds lists how a connection can die; inside a body they all read "partial_body".
var lossKinds = []struct {
	is     error
	reason string
}{
	{syscall.ECONNRESET, "connection_reset"},
	{syscall.EPIPE, "connection_reset"},
	{syscall.ECONNABORTED, "connection_reset"},
	{io.ErrUnexpectedEOF, "eof"},
	{io.EOF, "eof"},
}

// classifyError is the table of errors. What it does not know is a lost connection: a repeat is bounded by the policy.
func classifyError(o Outcome) Verdict {
	if v, ok := classifyCaller(o.Err); ok {
		return v
	}
	for i := range errorKinds {
		if errors.Is(o.Err, errorKinds[i].is) {
			return errorKinds[i].verdict
		}
	}
	if v, ok := classifyType(o.Err); ok {
		return v
	}
	return classifyLoss(o)
}

// classifyCaller recognises that nobody wants the answer any more.
func classifyCaller(err error) (Verdict, bool) {
	caller, ok := errors.AsType[*callerError](err)
	switch {
	case ok && errors.Is(caller.cause, errHedgeLost):
		return Verdict{Class: Canceled, Reason: "hedge_lost"}, true
	case ok && errors.Is(caller.ended, context.DeadlineExceeded):
		return Verdict{Class: Canceled, Reason: "caller_deadline"}, true
	case ok, errors.Is(err, context.Canceled):
		return Verdict{Class: Canceled, Reason: "caller_canceled"}, true
	}
	return Verdict{}, false
}

// classifyLoss gives the reason of a lost connection.
func classifyLoss(o Outcome) Verdict {
	v := Verdict{Class: Transient, Reason: "connection_lost", Unhealthy: true}
	if o.Status != 0 {
		v.Reason = "partial_body"
		return v
	}
	for i := range lossKinds {
		if errors.Is(o.Err, lossKinds[i].is) {
			v.Reason = lossKinds[i].reason
			return v
		}
	}
	if timeout, ok := errors.AsType[net.Error](o.Err); ok && timeout.Timeout() {
		v.Reason = "timeout_connection"
	} else if dial, ok := errors.AsType[*dialError](o.Err); ok && dial.handshake {
		v.Reason = "tls_handshake"
	}
	return v
}

// classifyType recognises errors by their type. Names that do not exist and certificates that do not fit are beyond
// a retry, but they do say that the upstream is out of order.
func classifyType(err error) (Verdict, bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return Verdict{Class: Permanent, Reason: "dns_not_found", Unhealthy: true}, true
		}
		return Verdict{Class: Transient, Reason: "dns", Unhealthy: true}, true
	}
	if _, ok := errors.AsType[flate.CorruptInputError](err); ok {
		return Verdict{Class: Transient, Reason: "broken_encoding", Unhealthy: true}, true
	}
	if isCertificate(err) {
		return Verdict{Class: Permanent, Reason: "tls_certificate", Unhealthy: true}, true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return Verdict{Class: Permanent, Reason: "tls_not_spoken", Unhealthy: true}, true
	}
	return Verdict{}, false
}

func isCertificate(err error) bool {
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	return verify || authority || host || invalid
}
