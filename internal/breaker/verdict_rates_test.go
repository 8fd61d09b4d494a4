package breaker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// fleetLoad folds calls of a fleet into m ten times a second, in bursts, until
// m opens or limit has passed. Every tenth of a second is one fold.
func fleetLoad(m *model, rnd *rand.Rand, perSecond, failing float64, limit time.Duration) (opened bool, after time.Duration) {
	const every = 100 // ms
	began, due := m.now, 0.0
	for m.now-began < limit.Milliseconds() {
		m.now += every
		var c counts
		for due += perSecond * every / 1000 * rnd.ExpFloat64(); due >= 1; due-- {
			if rnd.Float64() < failing {
				c.unhealthy++
			} else {
				c.healthy++
			}
		}
		v := m.do(1, func() bool { return m.fold(m.rec.epoch, c) })
		if v.state == Open {
			return true, time.Duration(m.now-began) * time.Millisecond
		}
	}
	return false, limit
}

// TestVerdictRates is the table of docs/breaker.md: how many of 30 fleets open
// within 10 minutes of a failing share, after 30 s of health, and how fast.
// The numbers of chance are fixed, so the results are.
func TestVerdictRates(t *testing.T) {
	const fleets, limit = 30, 10 * time.Minute
	tests := []struct {
		failing, perSecond float64
		atLeast, atMost    int           // fleets that open
		mean               time.Duration // of those that open, at most; 0: any
	}{
		{failing: 0.40, perSecond: 1},
		{failing: 0.40, perSecond: 20},
		{failing: 0.40, perSecond: 200},
		// At the tolerated share bad luck opens it once in hours.
		{failing: 0.50, perSecond: 1, atMost: 1},
		{failing: 0.50, perSecond: 5, atMost: 2},
		{failing: 0.50, perSecond: 20, atMost: 2},
		{failing: 0.50, perSecond: 100, atMost: 2},
		{failing: 0.50, perSecond: 1000, atMost: 2},
		{failing: 0.60, perSecond: 10, atLeast: 25, atMost: 30, mean: 3 * time.Minute},
		{failing: 0.60, perSecond: 20, atLeast: 30, atMost: 30, mean: time.Minute},
		{failing: 0.60, perSecond: 100, atLeast: 30, atMost: 30, mean: 10 * time.Second},
		// The recent part decides at speed; at the limit itself it is over it every other time.
		{failing: 0.60, perSecond: 300, atLeast: 30, atMost: 30, mean: 3 * time.Second},
		{failing: 0.60, perSecond: 1000, atLeast: 30, atMost: 30, mean: 3 * time.Second},
		{failing: 0.70, perSecond: 300, atLeast: 30, atMost: 30, mean: 1500 * time.Millisecond},
		{failing: 0.80, perSecond: 5, atLeast: 30, atMost: 30, mean: 15 * time.Second},
		{failing: 0.80, perSecond: 100, atLeast: 30, atMost: 30, mean: 1500 * time.Millisecond},
		{failing: 1, perSecond: 1, atLeast: 30, atMost: 30, mean: 25 * time.Second},
		{failing: 1, perSecond: 5, atLeast: 30, atMost: 30, mean: 5 * time.Second},
		{failing: 1, perSecond: 20, atLeast: 30, atMost: 30, mean: 1500 * time.Millisecond},
		{failing: 1, perSecond: 100, atLeast: 30, atMost: 30, mean: 400 * time.Millisecond},
		{failing: 1, perSecond: 1000, atLeast: 30, atMost: 30, mean: 200 * time.Millisecond},
	}
	for _, tt := range tests {
		rnd := rand.New(rand.NewPCG(1, uint64(tt.perSecond*100+tt.failing*10)))
		opened, total := 0, time.Duration(0)
		for range fleets {
			m := newModel(Config{})
			m.now = 1_700_000_000_000
			fleetLoad(m, rnd, tt.perSecond, 0, 30*time.Second)
			if ok, after := fleetLoad(m, rnd, tt.perSecond, tt.failing, limit); ok {
				opened++
				total += after
			}
		}
		mean := (total / time.Duration(max(1, opened))).Round(100 * time.Millisecond)
		t.Logf("%3.0f %% of %4.0f/s: %2d of %d open, mean after %v", tt.failing*100, tt.perSecond, opened, fleets, mean)
		if opened < tt.atLeast || opened > tt.atMost || tt.mean > 0 && mean > tt.mean {
			t.Errorf("%v failing of %v/s: %d open, mean %v; want %d to %d within %v", tt.failing, tt.perSecond, opened, mean, tt.atLeast, tt.atMost, tt.mean)
		}
	}
}

// closeAgain trips a new model and probes it, one probe after another that
// takes a second each, until it closes or limit has passed since it was
// half-open first.
func closeAgain(rnd *rand.Rand, failing float64, limit time.Duration) (after time.Duration) {
	m := newModel(Config{})
	m.now = 1_700_000_000_000
	m.do(1, func() bool { return m.fold(m.rec.epoch, counts{unhealthy: 20}) })
	m.now = m.ends.reopen
	for began := m.now; m.rec.state != Closed && after < limit; after = time.Duration(m.now-began) * time.Millisecond {
		if v := m.do(1, func() bool { return m.permit("probe") }); !v.granted {
			m.now = m.ends.reopen
			continue
		}
		m.now += 1000
		o := healthy
		if rnd.Float64() < failing {
			o = unhealthy
		}
		m.do(1, func() bool { return m.settle("probe", m.rec.epoch, o) })
	}
	return after
}

// TestVerdictRecovery is the table of docs/breaker.md: how long an upstream
// with a failing share is kept from closing after its first open time. What
// does not open a breaker must not keep it open for long either.
func TestVerdictRecovery(t *testing.T) {
	const fleets, limit = 10_000, time.Hour
	tests := []struct {
		failing       float64
		atLeast, mean time.Duration // until closed; mean is at most
	}{
		{failing: 0, atLeast: 3 * time.Second, mean: 3 * time.Second},
		{failing: 0.02, mean: 4 * time.Second},
		{failing: 0.30, mean: 15 * time.Second},
		{failing: 0.50, mean: 40 * time.Second},
		{failing: 0.60, mean: 90 * time.Second},
		{failing: 0.80, mean: 15 * time.Minute},
		{failing: 1, atLeast: limit, mean: 2 * limit}, // never
	}
	for _, tt := range tests {
		rnd := rand.New(rand.NewPCG(2, uint64(tt.failing*100)))
		times, total := make([]time.Duration, fleets), time.Duration(0)
		for i := range times {
			times[i] = closeAgain(rnd, tt.failing, limit)
			total += times[i]
		}
		slices.Sort(times)
		mean := (total / fleets).Round(100 * time.Millisecond)
		t.Logf("%3.0f %%: closed after mean %v, median %v, 95 of 100 within %v", tt.failing*100, mean, times[fleets/2], times[fleets*95/100])
		if times[0] < tt.atLeast || mean > tt.mean {
			t.Errorf("%v failing: closed after %v at least, mean %v; want %v, %v", tt.failing, times[0], mean, tt.atLeast, tt.mean)
		}
	}
}
