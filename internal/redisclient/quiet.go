package redisclient

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// quietFor is how long a message about a Redis that is away stands for those like it.
const quietFor = time.Minute

// Quiet returns a handler that writes a record which carries an error that is [ErrAway] at debug level, unless its
// message has not been written for a minute. An outage is news once, and [Health] says so; without this each
// job at work and each request would. Messages are constants, so there are few of them.
func Quiet(next slog.Handler) slog.Handler {
	return quiet{Handler: next, said: &said{last: make(map[string]time.Time)}}
}

type quiet struct {
	slog.Handler
	said *said
}

// Handle implements [slog.Handler].
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level > slog.LevelDebug && isAway(r) && q.said.lately(r) {
		if !q.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
		r.Level = slog.LevelDebug
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{Handler: q.Handler.WithAttrs(attrs), said: q.said}
}

// WithGroup implements [slog.Handler].
func (q quiet) WithGroup(name string) slog.Handler {
	return quiet{Handler: q.Handler.WithGroup(name), said: q.said}
}

func isAway(r slog.Record) (away bool) {
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		away = ok && errors.Is(err, ErrAway)
		return !away
	})
	return away
}

// said remembers when each message was written.
type said struct {
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

// lately reports whether a record's message was written less than quietFor ago. If not, it is now.
func (s *said) lately(r slog.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Time.Sub(s.last[r.Message]) < quietFor {
		return true
	}
	s.last[r.Message] = r.Time
	return false
}
