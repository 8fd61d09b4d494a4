package tasks

import (
	"fmt"
	"slices"
	"time"
)

// Backlog is what waits for an upstream, over all its priorities.
type Backlog struct {
	Ready   int           // could run now
	Taken   int           // workers have them: in a call, or held until the breaker lets one pass
	Waiting int           // snoozed, retrying or delayed
	Oldest  time.Duration // how long the oldest of Ready has been ready
	Paused  bool          // an operator has paused a queue
}

// Backlog counts the jobs of an upstream. An upstream that never had one has an empty backlog.
func (q *Queue) Backlog(upstream string) (Backlog, error) {
	var b Backlog
	known, err := q.inspect.Queues() // asynq knows a queue from its first task on
	if err != nil {
		return Backlog{}, fmt.Errorf("tasks: queues: %w", err)
	}
	for _, queue := range queuesOf(upstream) {
		if !slices.Contains(known, queue) {
			continue
		}
		info, err := q.inspect.GetQueueInfo(queue)
		if err != nil {
			return Backlog{}, fmt.Errorf("tasks: backlog of %s: %w", queue, err)
		}
		b.Ready += info.Pending
		b.Taken += info.Active
		b.Waiting += info.Scheduled + info.Retry
		b.Oldest = max(b.Oldest, info.Latency)
		b.Paused = b.Paused || info.Paused
	}
	return b, nil
}
