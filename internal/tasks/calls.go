package tasks

import (
	"context"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
)

// errDraining and errCanceledByRequest are why a running call was stopped.
var (
	errDraining          = fmt.Errorf("worker is draining: %w", context.Canceled)
	errCanceledByRequest = fmt.Errorf("job was canceled by request: %w", context.Canceled)
)

// Calls knows the calls in flight of a process, so that a request or a shutdown can stop them.
type Calls struct {
	mu       sync.Mutex // guards what follows
	draining bool
	cancel   map[string]*context.CancelCauseFunc // by job ID
}

// NewCalls returns an empty set.
func NewCalls() *Calls {
	return &Calls{cancel: make(map[string]*context.CancelCauseFunc)}
}

func (c *Calls) begin(ctx context.Context, id string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel[id] = &cancel
	if c.draining {
		cancel(errDraining)
	}
	return ctx, func() {
		cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cancel[id] == &cancel { // else a later run of the same job is here too
			delete(c.cancel, id)
		}
	}
}

// Len is how many calls are in flight.
func (c *Calls) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.cancel)
}

// Cancel stops the call of one job, if it is here.
func (c *Calls) Cancel(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.cancel[id]; cancel != nil {
		(*cancel)(errCanceledByRequest)
	}
}

// Drain stops all calls, and those that still begin. Their jobs go back to the queue.
func (c *Calls) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	for _, cancel := range c.cancel {
		(*cancel)(errDraining)
	}
}

// Listen stops calls whose jobs are canceled by request, until ctx ends. A message that is lost costs the
// rest of a call: the record refuses its answer.
func (c *Calls) Listen(ctx context.Context, rdb redis.UniversalClient) error {
	sub := rdb.Subscribe(ctx, cancelChannel)
	defer func() { _ = sub.Close() }() // nothing is left to lose
	messages := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			c.Cancel(m.Payload)
		}
	}
}
