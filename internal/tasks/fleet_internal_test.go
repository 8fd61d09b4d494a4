package tasks

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"
)

// sea is a Redis in virtual time that can be cut off.
type sea struct {
	server *miniredis.Miniredis
	mu     sync.Mutex
	cut    bool
}

func (s *sea) client() redis.UniversalClient {
	return redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.cut {
				return nil, errors.New("no route to Redis")
			}
			return s.server.Dial()
		},
	})
}

// fleets runs a test over n workers in virtual time.
func fleets(t *testing.T, n int, test func(t *testing.T, s *sea, workers []*member)) {
	synctest.Test(t, func(t *testing.T) {
		s := &sea{server: miniredis.NewMiniRedis()}
		var wg sync.WaitGroup
		var workers []*member
		for range n {
			rdb := s.client()
			defer rdb.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			m := &member{Fleet: NewFleet(rdb), kill: cancel}
			workers = append(workers, m)
			wg.Go(func() { _ = m.Run(ctx) })
		}
		time.Sleep((deadLooks + 1) * beatEvery) // they know each other
		test(t, s, workers)
		for _, m := range workers {
			m.kill()
		}
		wg.Wait()
	})
}

type member struct {
	*Fleet
	kill func()
}

// thinks returns what a worker thinks of a run that another has, when it holds the job itself.
func (m *member) thinks(t *testing.T, id, by string) (lost bool) {
	t.Helper()
	_, release := m.hold(id)
	defer release()
	lost, err := m.lost(t.Context(), id, by)
	require.NoError(t, err)
	return lost
}

func TestRunOfALivingWorkerIsNotLost(t *testing.T) {
	fleets(t, 2, func(t *testing.T, _ *sea, w []*member) {
		by, release := w[0].hold("a")
		for range 20 {
			require.False(t, w[1].thinks(t, "a", by))
			require.False(t, w[0].thinks(t, "a", by), "nor for another run of the same worker")
			time.Sleep(beatEvery / 2)
		}
		release()
		time.Sleep(2 * beatEvery)
		require.True(t, w[1].thinks(t, "a", by), "it has beaten since without the job: its claim came to nothing")
		require.True(t, w[0].thinks(t, "a", by))
	})
}

func TestRunOfADeadWorkerIsLost(t *testing.T) {
	fleets(t, 2, func(t *testing.T, _ *sea, w []*member) {
		by, _ := w[0].hold("a")
		time.Sleep(beatEvery)
		w[0].kill()
		died := time.Now()
		for !w[1].thinks(t, "a", by) {
			time.Sleep(100 * time.Millisecond)
		}
		require.GreaterOrEqual(t, time.Since(died), deadLooks*beatEvery-2*beatEvery)
		require.LessOrEqual(t, time.Since(died), deadLooks*beatEvery+2*beatEvery)
	})
}

func TestOutageOfRedisKillsNobody(t *testing.T) {
	fleets(t, 2, func(t *testing.T, s *sea, w []*member) {
		by, _ := w[0].hold("a")
		s.mu.Lock()
		s.cut = true
		s.server.Close()
		s.mu.Unlock()
		time.Sleep(6 * deadLooks * beatEvery)
		require.False(t, w[1].thinks(t, "a", by), "nobody has looked")
		s.mu.Lock()
		s.cut, s.server = false, miniredis.NewMiniRedis() // it has lost all it knew
		s.mu.Unlock()
		for range 40 {
			time.Sleep(beatEvery / 4)
			require.False(t, w[1].thinks(t, "a", by), "the looks that failed do not count, and the worker beats again")
		}
	})
}

func TestNewcomerKnowsNobodyForDead(t *testing.T) {
	fleets(t, 1, func(t *testing.T, _ *sea, w []*member) {
		by := holder{worker: "gone", beat: 7, run: 1}.String()
		require.True(t, w[0].thinks(t, "a", by), "not seen for as long as it has watched")
		newcomer := &member{Fleet: NewFleet(w[0].rdb)}
		require.False(t, newcomer.thinks(t, "a", by), "it has not looked yet")
		newcomer.round(t.Context())
		require.False(t, newcomer.thinks(t, "a", by))
	})
}

func TestDeadWorkersAreForgotten(t *testing.T) {
	fleets(t, 2, func(t *testing.T, s *sea, w []*member) {
		require.NoError(t, w[1].rdb.HSet(t.Context(), beatsKey, "frozen", 3).Err())
		require.NoError(t, w[1].rdb.HSet(t.Context(), jobsKey, "frozen", "3 a").Err())
		w[0].kill()
		time.Sleep(beatEvery)
		require.Len(t, w[1].rdb.HGetAll(t.Context(), beatsKey).Val(), 2, "one that leaves says so")
		time.Sleep(forgetLooks*beatEvery + 2*beatEvery)
		require.Len(t, w[1].rdb.HGetAll(t.Context(), beatsKey).Val(), 1)
		require.Len(t, w[1].rdb.HGetAll(t.Context(), jobsKey).Val(), 1)
	})
}

// A lease may have been renewed 5 s before its worker died; a beat may have come at that moment, and be seen one later.
func TestAWorkerIsKnownForDeadBeforeItsTasksComeBack(t *testing.T) {
	require.LessOrEqual(t, (1+deadLooks)*beatEvery, deadRounds*careEvery-5*time.Second)
}

func TestHolderNames(t *testing.T) {
	want := holder{worker: "w", beat: 12, run: 3}
	got, ok := parseHolder(want.String())
	require.True(t, ok)
	require.Equal(t, want, got)
	for _, text := range []string{"", "w", "w/1", "/1/2", "w/x/1", "w/1/x", "w/1/2/3"} {
		_, ok := parseHolder(text)
		require.False(t, ok, text)
	}
}

func TestClaimLeavesALivingRunAlone(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{}`)}}
	h, other := b.handler(up, NewCalls()), NewFleet(b.rdb)
	id := b.submit(t).ID
	by, release := other.hold(id)
	defer release()
	_, err := b.claim(t.Context(), id, by, 0)
	require.NoError(t, err)
	other.round(t.Context())
	h.fleet.round(t.Context())

	var back *comeBack
	require.ErrorAs(t, runOnce(t, h, id), &back, "asynq thinks that the run is lost")
	require.Equal(t, "another_run_has_it", back.reason)
	job := b.must(t, id)
	require.Equal(t, []int{1, 0, 0}, []int{job.Runs, job.Crashes, up.count()})
}

func TestClaimThatIsMadeTwiceCountsOnce(t *testing.T) {
	b := newBundle(t)
	id := b.submit(t).ID
	for range 2 {
		job, err := b.claim(t.Context(), id, "w/1/1", 0)
		require.NoError(t, err, "the reply to the first was lost")
		require.Equal(t, []int{1, 0}, []int{job.Runs, job.Crashes})
		require.Equal(t, chatBody, string(job.Request))
	}
	b.in(t, id, Running)
}

// A Redis that carries a claim out and dies before it replies.
func TestClaimWithoutAReplyIsMadeAgain(t *testing.T) {
	b := newBundle(t)
	up := &upstream{answers: []answer{says(`{}`)}}
	h := b.handler(up, NewCalls())
	id := b.submit(t).ID
	b.rdb.AddHook(&mute{command: "evalsha", times: 3})
	require.NoError(t, runOnce(t, h, id))
	job := b.must(t, id)
	require.Equal(t, Succeeded, job.State)
	require.Equal(t, []int{1, 0, 1}, []int{job.Runs, job.Crashes, up.count()})
	require.Len(t, job.Ledger, 1, "nobody was lost")
}

// mute loses the replies to the first commands of a kind.
type mute struct {
	command string
	times   int
}

func (m *mute) DialHook(next redis.DialHook) redis.DialHook { return next }

func (m *mute) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (m *mute) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil && cmd.Name() == m.command && m.times > 0 {
			m.times--
			cmd.SetErr(io.EOF)
			return io.EOF
		}
		return err
	}
}
