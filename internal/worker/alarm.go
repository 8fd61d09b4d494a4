package worker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

// alarm calls for help when an upstream refuses calls for a reason that no wait will heal. Each job that meets it
// fails, so one line in a while says what they have in common.
type alarm struct {
	upstream string
	log      *slog.Logger

	mu     sync.Mutex // guards raised
	raised map[string]time.Time
}

// alarmEvery is how long a reason that was told is not told again.
const alarmEvery = time.Minute

func newAlarm(upstream string, log *slog.Logger) *alarm {
	return &alarm{upstream: upstream, log: log, raised: make(map[string]time.Time)}
}

// remedy says what an operator can do about a call's failure, "" if it is not for him.
func remedy(e *httpx.Error) string {
	if e.Class != httpx.Permanent {
		return ""
	}
	switch e.Reason {
	case "tls_certificate":
		return "its certificate does not verify: renew it, or give the workers the authority that signed it"
	case "tls_not_spoken":
		return "it does not speak TLS at this address: see base_url"
	case "dns_not_found":
		return "its name does not exist: see base_url"
	case "http_401", "http_403":
		return "it refuses the key: see api_key_env and api_key_file"
	case "insufficient_quota":
		return "its quota is spent: see the account"
	default:
		return ""
	}
}

// raise looks at a call that was given up.
func (a *alarm) raise(ctx context.Context, e *httpx.Error) {
	advice := remedy(e)
	if advice == "" || !a.due(e.Reason) {
		return
	}
	attrs := []slog.Attr{slog.String("upstream", a.upstream), slog.String("reason", e.Reason), slog.String("advice", advice)}
	if cause := errors.Unwrap(e); cause != nil {
		attrs = append(attrs, slog.Any("error", cause))
	}
	a.log.LogAttrs(ctx, slog.LevelError, "upstream needs an operator", attrs...)
}

// due reports whether it is time to tell of a reason, and takes it as told.
func (a *alarm) due(reason string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if last, told := a.raised[reason]; told && now.Sub(last) < alarmEvery {
		return false
	}
	a.raised[reason] = now
	return true
}
