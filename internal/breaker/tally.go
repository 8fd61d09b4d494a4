package breaker

import (
	"math/rand/v2"
	"sync/atomic"
)

// shards is a power of two well above the cores that call at the same instant.
const shards = 16

// tally counts the outcomes of one period between two changes. A call counts
// in the tally of the period it began in, so a call that began before an
// outage and ends after it does not weigh on the recovered upstream: that
// tally is no longer folded.
type tally struct {
	run    atomic.Int64 // failures of this process since its last success
	_      [56]byte     // run is read by every success; keep writers off its line
	shards [shards]shard
}

// shard fills a cache line, so that two cores do not write the same one.
type shard struct {
	healthy, unhealthy, slow atomic.Uint32
	_                        [52]byte
}

// counts are outcomes taken from a tally. A slow call is counted a second time
// under its outcome.
type counts struct{ healthy, unhealthy, slow int64 }

// add counts one call and returns the length of the current run of failures.
func (t *tally) add(o outcome, slow bool) int64 {
	if o == nothing {
		return 0
	}
	s := &t.shards[rand.Uint32()%shards]
	if slow {
		s.slow.Add(1)
	}
	if o == unhealthy {
		s.unhealthy.Add(1)
		return t.run.Add(1)
	}
	s.healthy.Add(1)
	if t.run.Load() != 0 { // a plain load keeps the happy path free of contention
		t.run.Store(0)
	}
	return 0
}

// take returns what was counted since the last take. Calls that end meanwhile
// are in this take or in the next.
func (t *tally) take() counts {
	var c counts
	for i := range t.shards {
		s := &t.shards[i]
		c.healthy += int64(s.healthy.Swap(0))
		c.unhealthy += int64(s.unhealthy.Swap(0))
		c.slow += int64(s.slow.Swap(0))
	}
	return c
}
