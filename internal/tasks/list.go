package tasks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/internal/openai"
)

// Filter chooses jobs for [Store.List]. Zero fields choose all.
type Filter struct {
	State    State
	Kind     openai.Kind
	Upstream string
	After    string // Page.Next of the page before
	Limit    int    // at most this many jobs, 1 to 100; default 20
}

// Page is a part of a list, newest first.
type Page struct {
	Jobs []*Job
	Next string // give as Filter.After to go on; empty at the end
}

// MaxPage is the largest [Filter.Limit].
const MaxPage = 100

const (
	defaultPage = 20
	// scanLimit bounds how many jobs one page looks at while it searches for matches of Kind and
	// Upstream, which have no index. A page may then be short, or empty, and still have a Next.
	scanLimit = 2000
	// tieSlack is how many jobs of one part may have been created in the same microsecond without a
	// page missing one.
	tieSlack = 8
)

// ErrCursor says that Filter.After is not a Page.Next.
var ErrCursor = errors.New("tasks: not a cursor of this list")

// position is a job's place in a list: by creation time, then by ID, descending.
type position struct {
	created int64 // µs
	id      string
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(q.created, p.created), strings.Compare(q.id, p.id))
}

func (p position) String() string { return strconv.FormatInt(p.created, 36) + "." + p.id }

func parsePosition(s string) (position, error) {
	stamp, id, ok := strings.Cut(s, ".")
	created, err := strconv.ParseInt(stamp, 36, 64)
	if !ok || err != nil || !ValidID(id) {
		return position{}, ErrCursor
	}
	return position{created, id}, nil
}

// List returns a page of jobs without their bodies and ledgers. A bad cursor is [ErrCursor].
func (s *Store) List(ctx context.Context, f Filter) (*Page, error) {
	if f.Limit <= 0 {
		f.Limit = defaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	var after *position
	if f.After != "" {
		p, err := parsePosition(f.After)
		if err != nil {
			return nil, err
		}
		after = &p
	}
	page := &Page{Jobs: []*Job{}}
	for scanned := 0; scanned < scanLimit; {
		found, err := s.positions(ctx, f.State, after, f.Limit)
		if err != nil {
			return nil, err
		}
		jobs, err := s.summaries(ctx, found)
		if err != nil {
			return nil, err
		}
		for i, job := range jobs {
			after = &found[i]
			if job == nil || !f.matches(job) {
				continue
			}
			page.Jobs = append(page.Jobs, job)
			if len(page.Jobs) == f.Limit {
				page.Next = after.String()
				return page, nil
			}
		}
		if len(found) < f.Limit {
			return page, nil
		}
		scanned += len(found)
	}
	page.Next = after.String()
	return page, nil
}

func (f Filter) matches(j *Job) bool {
	return (f.State == "" || f.State == j.State) &&
		(f.Kind == "" || f.Kind == j.Kind) &&
		(f.Upstream == "" || f.Upstream == j.Upstream)
}

// positions merges the indexes of all parts and returns the n places after a position.
func (s *Store) positions(ctx context.Context, state State, after *position, n int) ([]position, error) {
	states := States()
	if state != "" {
		states = []State{state}
	}
	from := "+inf"
	if after != nil {
		from = strconv.FormatInt(after.created, 10)
	}
	pipe := s.rdb.Pipeline()
	var replies []*redis.ZSliceCmd
	for part := range shards {
		for _, st := range states {
			replies = append(replies, pipe.ZRevRangeByScoreWithScores(ctx, stateKey(part, st),
				&redis.ZRangeBy{Min: "-inf", Max: from, Count: int64(n + tieSlack)}))
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("tasks: list: %w", err)
	}
	var all []position
	for _, r := range replies {
		for _, z := range r.Val() {
			id, _ := z.Member.(string)
			if p := (position{int64(z.Score), id}); after == nil || p.compare(*after) > 0 {
				all = append(all, p)
			}
		}
	}
	slices.SortFunc(all, position.compare)
	// A job that changed its state between two of the reads is seen twice.
	all = slices.Compact(all)
	return all[:min(n, len(all))], nil
}

// summaries reads the records of positions; a job that has just gone is nil.
func (s *Store) summaries(ctx context.Context, at []position) ([]*Job, error) {
	if len(at) == 0 {
		return nil, nil
	}
	pipe := s.rdb.Pipeline()
	replies := make([]*redis.SliceCmd, len(at))
	for i, p := range at {
		replies[i] = pipe.HMGet(ctx, jobKey(p.id), Summary.fields()...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("tasks: list: %w", err)
	}
	jobs := make([]*Job, len(at))
	for i, r := range replies {
		job, err := s.decodeReply(at[i].id, Summary, r.Val())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		jobs[i] = job
	}
	return jobs, nil
}
