package breaker

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

// model is verdict.lua again, in plain Go and without Redis: the script must
// say what the model says. Times are ms.
type model struct {
	cfg  Config
	now  int64
	rec  verdict // without what depends on now
	ends struct{ reopen, ramp int64 }

	window map[int64]counts // by beginning of the bucket
	leases map[string]int64 // end
}

func newModel(cfg Config) *model {
	return &model{cfg: cfg.WithDefaults(), window: map[int64]counts{}, leases: map[string]int64{}}
}

// do runs one operation and returns the verdict after it.
func (m *model) do(jitter float64, op func() (granted bool)) verdict {
	if m.rec.epoch == 0 {
		m.rec.epoch = m.now
	}
	m.ends.reopen = min(m.ends.reopen, m.now+m.cfg.MaxOpenFor.Milliseconds())
	if m.rec.state == Open && m.rec.mode == Auto && m.now >= m.ends.reopen {
		m.change(HalfOpen, OpenTimeOver)
	}
	m.cfg.OpenJitter = jitter
	granted := op()
	if m.rec.state != Closed { // else leases stay, as nobody counts them
		m.expire()
	}
	return m.verdict(granted)
}

// read is the operation that changes nothing.
func (m *model) read() verdict {
	stored := m.rec
	defer func() { m.rec = stored }()
	m.rec.epoch = cmp.Or(m.rec.epoch, m.now)
	return m.verdict(false)
}

func (m *model) verdict(granted bool) verdict {
	if m.rec.state == Closed {
		m.sum()
	}
	v := m.rec
	ms := func(n int64) time.Duration { return time.Duration(max(0, n)) * time.Millisecond }
	v.age, v.reopenIn, v.rampLeft = ms(m.now-v.epoch), ms(m.ends.reopen-m.now), ms(m.ends.ramp-m.now)
	for _, end := range m.leases {
		if v.state != Closed && end > m.now {
			v.probes++
		}
	}
	v.granted = granted
	return v
}

func (m *model) change(s State, r Reason) {
	if m.rec.state != HalfOpen {
		m.rec.probeSuccesses, m.rec.probeFailures = 0, 0
	}
	m.rec.epoch = max(m.now, m.rec.epoch+1)
	m.rec.state, m.rec.reason = s, r
	clear(m.window)
}

func (m *model) open(r Reason) {
	grown := float64(m.cfg.OpenFor.Milliseconds()) * math.Pow(2, float64(min(m.rec.trips-1, 30)))
	m.ends.reopen = m.now + min(m.cfg.MaxOpenFor.Milliseconds(), int64(math.Floor(grown*m.cfg.OpenJitter)))
	m.change(Open, r)
}

func (m *model) close(r Reason, ramp time.Duration) {
	m.ends.ramp = m.now + max(0, ramp).Milliseconds()
	m.rec.run, m.rec.calls, m.rec.failures, m.rec.slow = 0, 0, 0, 0
	m.change(Closed, r)
}

// bucket is when the current one began.
func (m *model) bucket() int64 {
	window := m.cfg.Window.Milliseconds()
	return m.now * 20 / window * window / 20
}

// live says whether a bucket is in the window.
func (m *model) live(began int64) bool {
	return began > m.bucket()-m.cfg.Window.Milliseconds() && began <= m.now
}

// sum adds up the window.
func (m *model) sum() {
	all := m.newest(20)
	m.rec.calls, m.rec.failures, m.rec.slow = all.healthy+all.unhealthy, all.unhealthy, all.slow
}

// newest adds up the newest of the window's 20 buckets.
func (m *model) newest(buckets int64) (sum counts) {
	from := m.bucket()*20 - buckets*m.cfg.Window.Milliseconds()
	for began, c := range m.window {
		if m.live(began) && began*20 > from {
			sum = counts{sum.healthy + c.healthy, sum.unhealthy + c.unhealthy, sum.slow + c.slow}
		}
	}
	return sum
}

func (m *model) fold(epoch int64, c counts, tokens ...string) bool {
	if c.healthy+c.unhealthy > 0 && m.rec.state == Closed && epoch == m.rec.epoch {
		maps.DeleteFunc(m.window, func(began int64, _ counts) bool { return !m.live(began) })
		w := m.window[m.bucket()]
		m.window[m.bucket()] = counts{w.healthy + c.healthy, w.unhealthy + c.unhealthy, w.slow + c.slow}
		m.rec.run += c.unhealthy
		if c.healthy > 0 {
			m.rec.run = 0
		}
		m.sum()
		m.judge()
	}
	for _, token := range tokens {
		if _, ok := m.leases[token]; ok { // not purged yet, so still its own
			m.leases[token] = m.now + m.cfg.ProbeLease.Milliseconds()
		}
	}
	return false
}

func (m *model) judge() {
	if m.rec.mode != Auto {
		return
	}
	part := m.newest(20)
	reason := m.judgePart(part)
	if reason == NoReason {
		part = m.newest(3)
		reason = m.judgePart(part)
	}
	if m.cfg.HardFailures > 0 && m.rec.run >= int64(m.cfg.HardFailures) {
		part, reason = m.newest(20), HardFailures
	}
	if reason == NoReason {
		return
	}
	m.rec.calls, m.rec.failures, m.rec.slow = part.healthy+part.unhealthy, part.unhealthy, part.slow
	if m.now-m.rec.epoch >= m.cfg.ForgetTrips.Milliseconds() {
		m.rec.trips = 0
	}
	m.rec.trips++
	m.open(reason)
}

func (m *model) judgePart(part counts) Reason {
	calls := part.healthy + part.unhealthy
	switch {
	case calls < int64(m.cfg.MinCalls):
		return NoReason
	case m.exceeds(part.unhealthy, calls, m.cfg.FailureRatio):
		return FailureRatio
	case m.exceeds(part.slow, calls, m.cfg.SlowRatio):
		return SlowRatio
	default:
		return NoReason
	}
}

func (m *model) exceeds(hits, calls int64, ratio float64) bool {
	n, safe, luck := float64(calls), max(0, ratio-max(0, m.cfg.Margin)), 0.0
	if m.cfg.Margin > 0 {
		luck = 4 * math.Sqrt(n*safe*(1-safe))
	}
	h := float64(hits) + 1e-9
	return h >= float64(ratio*n) && h >= float64(safe*n)+luck
}

// expire drops the leases of the past, and of a future no lease can reach.
func (m *model) expire() {
	for token, end := range m.leases {
		if end <= m.now || end >= m.now+2*m.cfg.ProbeLease.Milliseconds() {
			delete(m.leases, token)
		}
	}
}

func (m *model) permit(token string) bool {
	m.expire()
	if m.rec.state != HalfOpen || len(m.leases) >= m.cfg.Probes {
		return false
	}
	m.leases[token] = m.now + m.cfg.ProbeLease.Milliseconds()
	return true
}

func (m *model) settle(token string, epoch int64, o outcome) bool {
	delete(m.leases, token)
	switch {
	case m.rec.state != HalfOpen || epoch != m.rec.epoch:
	case o == healthy:
		m.rec.probeSuccesses++
		if m.rec.probeSuccesses >= int64(m.cfg.Successes) {
			m.close(ProbesHealthy, m.cfg.Ramp)
		}
	case o == unhealthy:
		m.rec.probeFailures++
		m.judgeProbes()
	}
	return false
}

// judgeProbes reopens after a first failed probe for longer, and after a
// success for as long as before, once the ratio is out of reach.
func (m *model) judgeProbes() {
	failed, successes := float64(m.rec.probeFailures), float64(m.cfg.Successes)
	switch {
	case m.rec.probeSuccesses == 0:
		m.rec.trips++
		m.open(ProbeFailed)
	case m.rec.probeFailures >= int64(m.cfg.MinCalls), failed+1e-9 >= float64(m.cfg.FailureRatio*(failed+successes)):
		m.open(ProbeFailed)
	}
}

func (m *model) override(mode Mode) bool {
	if mode == m.rec.mode {
		return false
	}
	m.rec.mode, m.rec.trips, m.ends.reopen = mode, 0, 0
	m.close(Operator, 0)
	if mode == ForceOpen {
		m.rec.state = Open
	}
	return false
}

// tokens are the leases in a stable order.
func (m *model) tokens() []string {
	var tokens []string
	for token := range m.leases {
		tokens = append(tokens, token)
	}
	slices.Sort(tokens)
	return tokens
}
