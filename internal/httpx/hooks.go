package httpx

import (
	"context"
	"time"
)

// Hooks are told what a Client does, each exactly once per event, from the goroutine of the call. A nil hook is skipped.
// Hooks must be fast: the call waits for them.
type Hooks struct {
	Attempt func(context.Context, Attempt) // after each attempt that was made, with the wait planned after it
	Wait    func(context.Context, Wait)    // before each wait in process
	GiveUp  func(context.Context, *Error)  // when a call ends without a usable answer
}

// Wait is a pause in process between two attempts.
type Wait struct {
	Attempt  int           // the attempt that failed, from 1
	Duration time.Duration // how long
	Reason   string        // "backoff" or "retry_after"
}

func (h *Hooks) attempt(ctx context.Context, a Attempt) {
	if h.Attempt != nil {
		h.Attempt(ctx, a)
	}
}

func (h *Hooks) wait(ctx context.Context, w Wait) {
	if h.Wait != nil {
		h.Wait(ctx, w)
	}
}

func (h *Hooks) giveUp(ctx context.Context, e *Error) {
	if h.GiveUp != nil {
		h.GiveUp(ctx, e)
	}
}
