package tasks

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Watcher tells who waits for a job that its state has changed. However many wait, it holds one
// connection to Redis.
type Watcher struct {
	rdb redis.UniversalClient
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	sub     *redis.PubSub
	waiting map[string]map[chan struct{}]struct{} // by job ID
}

// NewWatcher returns a watcher that works while [Watcher.Run] runs. Before that, and without Redis, its
// watches are silent: waiting falls back to looking now and then.
func NewWatcher(rdb redis.UniversalClient, log *slog.Logger) *Watcher {
	return &Watcher{rdb: rdb, log: log, waiting: make(map[string]map[chan struct{}]struct{})}
}

// Run listens until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	sub := w.rdb.Subscribe(ctx)
	defer func() { _ = sub.Close() }() // nothing is left to lose
	w.mu.Lock()
	w.sub = sub
	channels := make([]string, 0, len(w.waiting))
	for id := range w.waiting {
		channels = append(channels, stateChannel+id)
	}
	w.mu.Unlock()
	if len(channels) > 0 {
		_ = sub.Subscribe(ctx, channels...) // go-redis subscribes again when it connects
	}
	messages := sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(3 * time.Second))
	for {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			w.sub = nil
			w.mu.Unlock()
			return nil
		case m, ok := <-messages:
			if !ok {
				return errors.New("tasks: watcher: subscription closed")
			}
			switch m := m.(type) {
			case *redis.Message:
				w.notify(strings.TrimPrefix(m.Channel, stateChannel))
			case *redis.Subscription:
				// What changed before the subscription took effect was not announced to us: look.
				w.notify(strings.TrimPrefix(m.Channel, stateChannel))
			}
		}
	}
}

func (w *Watcher) notify(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.waiting[id] {
		select {
		case ch <- struct{}{}:
		default: // it has been told already
		}
	}
}

// watch returns a channel that receives after changes of a job, and a function that ends the watch.
func (w *Watcher) watch(ctx context.Context, id string) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	first := len(w.waiting[id]) == 0
	if first {
		w.waiting[id] = make(map[chan struct{}]struct{})
	}
	w.waiting[id][ch] = struct{}{}
	if first && w.sub != nil {
		if err := w.sub.Subscribe(ctx, stateChannel+id); err != nil {
			w.log.LogAttrs(ctx, slog.LevelDebug, "watch falls back to polling", slog.String("job_id", id), slog.Any("error", err))
		}
	}
	return ch, func() { w.unwatch(id, ch) }
}

func (w *Watcher) unwatch(id string, ch chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting[id], ch)
	if len(w.waiting[id]) > 0 {
		return
	}
	delete(w.waiting, id)
	if w.sub != nil {
		// The client that waited may be gone, and its context with it.
		_ = w.sub.Unsubscribe(context.Background(), stateChannel+id) // a message too many does no harm
	}
}
