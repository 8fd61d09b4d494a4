package spool_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/spool"
)

const roomy = 1 << 20

func open(t testing.TB, dir string, limit int64) *spool.Spool {
	t.Helper()
	s, err := spool.Open(dir, limit, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// keeps returns what a spool has, the oldest first, as "key=payload".
func keeps(t testing.TB, s *spool.Spool) (all []string) {
	t.Helper()
	for _, e := range s.Entries() {
		payload, err := s.Read(e.Name)
		require.NoError(t, err)
		all = append(all, e.Key+"="+string(payload))
	}
	return all
}

func TestEntriesAreKeptInOrderUntilRemoved(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "not", "there", "yet"), roomy)
	for _, put := range []struct{ key, payload string }{{"b", "1"}, {"a", ""}, {"b", "2"}} {
		require.NoError(t, s.Put(put.key, []byte(put.payload)))
	}
	require.Equal(t, []string{"b=1", "a=", "b=2"}, keeps(t, s))
	n, size := s.Usage()
	require.Equal(t, 3, n)
	require.EqualValues(t, 3*20+2, size, "with their headers")

	first := s.Entries()[0].Name
	require.NoError(t, s.Remove(first))
	require.NoError(t, s.Remove(first), "gone already")
	require.Equal(t, []string{"a=", "b=2"}, keeps(t, s))
	for _, e := range s.Entries() {
		require.NoError(t, s.Remove(e.Name))
	}
	n, size = s.Usage()
	require.Zero(t, n)
	require.Zero(t, size)
}

func TestKeysCannotLeaveTheDirectory(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	for _, key := range []string{"", ".", "..", "a/b", "../a", "a.b", "é", strings.Repeat("x", 65)} {
		require.Error(t, s.Put(key, nil), "%q", key)
	}
	require.NoError(t, s.Put(strings.Repeat("x", 64), nil))
}

func TestNobodyElseMayReadEntries(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, roomy)
	require.NoError(t, s.Put("a", []byte("secret")))
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, path)
		return nil
	}))
}

func TestPutIsRefusedAboveTheLimit(t *testing.T) {
	s := open(t, t.TempDir(), 100)
	require.NoError(t, s.Put("a", make([]byte, 80)))
	require.ErrorIs(t, s.Put("b", nil), spool.ErrFull)
	require.NoError(t, s.Remove(s.Entries()[0].Name))
	require.NoError(t, s.Put("b", nil))
}

func TestPutReportsTheDisksError(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy)
	require.NoError(t, os.RemoveAll(dir))
	require.ErrorIs(t, s.Put("a", nil), os.ErrNotExist)
	n, size := s.Usage()
	require.Zero(t, n)
	require.Zero(t, size, "what was not written takes no room")
}

func TestConcurrentPutsAreAllKept(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := s.Put("same", fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Len(t, keeps(t, s), 20)
}

func TestWhatAProcessLeavesIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	dead, alive := open(t, dir, roomy), open(t, dir, roomy)
	require.NoError(t, dead.Put("a", []byte("1")))
	require.NoError(t, alive.Put("b", []byte("2")))
	n, err := alive.Adopt()
	require.NoError(t, err)
	require.Zero(t, n, "it lives")

	require.NoError(t, dead.Close())
	n, err = alive.Adopt()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, []string{"a=1", "b=2"}, keeps(t, alive), "by when they were put")

	require.NoError(t, alive.Close())
	require.Equal(t, []string{"a=1", "b=2"}, keeps(t, open(t, dir, 1)), "at the start too, whatever the limit")
}

func TestAnEmptySpoolLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy)
	require.NoError(t, s.Put("a", nil))
	require.NoError(t, s.Remove(s.Entries()[0].Name))
	require.NoError(t, s.Close())
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestDamageIsSetAside(t *testing.T) {
	damages := map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"torn header":    func(b []byte) []byte { return b[:10] },
		"torn payload":   func(b []byte) []byte { return b[:len(b)-1] },
		"too long":       func(b []byte) []byte { return append(b, 0) },
		"a flipped bit":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"other software": func([]byte) []byte { return []byte("#!/bin/sh\necho a file of somebody else's\n") },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, roomy)
			require.NoError(t, s.Put("a", []byte("payload")))
			require.NoError(t, s.Put("b", []byte("whole")))
			path := find(t, dir, "*.a.entry")
			file, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(file), 0o600))

			_, err = s.Read(s.Entries()[0].Name)
			require.ErrorIs(t, err, spool.ErrDamaged)
			require.Equal(t, []string{"b=whole"}, keeps(t, s))
			_, size := s.Usage()
			require.EqualValues(t, 20+5, size)
			require.FileExists(t, filepath.Join(dir, "damaged", filepath.Base(path)))
		})
	}
}

// find returns the one file that matches below the directories of a spool.
func find(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", pattern))
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

func TestForeignFilesAreNoObstacle(t *testing.T) {
	dir := t.TempDir()
	dead := open(t, dir, roomy)
	require.NoError(t, dead.Put("a", []byte("1")))
	left := filepath.Dir(find(t, dir, "*.a.entry"))
	for _, name := range []string{"17.b.tmp", "notes.txt", "x.entry", "+1.a.entry"} {
		require.NoError(t, os.WriteFile(filepath.Join(left, name), []byte("?"), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(left, "17.dir.entry"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "README"), []byte("?"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "other"), 0o700))
	require.NoError(t, dead.Close())

	var log bytes.Buffer
	s, err := spool.Open(dir, roomy, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	require.Equal(t, []string{"a=1"}, keeps(t, s))
	require.NoDirExists(t, left)
	aside, err := os.ReadDir(filepath.Join(dir, "damaged"))
	require.NoError(t, err)
	require.Len(t, aside, 4, "the one that was being written is gone")
	require.Equal(t, 4, strings.Count(log.String(), "file set aside"))
	require.FileExists(t, filepath.Join(dir, "README"))
	require.DirExists(t, filepath.Join(dir, "other"))
}

func TestOpenNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := spool.Open(filepath.Join(file, "spool"), roomy, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "spool: ")
}

const childDir = "FERRY_TEST_SPOOL_DIR"

// TestMain is also the other process of TestTwoProcessesShareADirectory: it puts entries until it is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		m.Run()
		return
	}
	s, err := spool.Open(dir, 1<<30, slog.New(slog.DiscardHandler))
	for i := 0; err == nil; i++ {
		if err = s.Put("child", fmt.Append(nil, os.Getpid(), ".", i)); err == nil {
			fmt.Printf("child=%d.%d\n", os.Getpid(), i)
		}
	}
	fmt.Println(err)
}

// Several processes put, and are killed in the middle of it; others adopt at once. No entry whose Put has
// returned is lost, and none is in two places.
func TestTwoProcessesShareADirectory(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, roomy), open(t, dir, roomy)
	stop := make(chan struct{})
	var adopters sync.WaitGroup
	for _, s := range []*spool.Spool{a, b} {
		adopters.Go(func() {
			for {
				if _, err := s.Adopt(); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	var promised []string
	for range 6 {
		promised = append(promised, killedChild(t, dir)...)
	}
	close(stop)
	adopters.Wait()
	_, err := a.Adopt()
	require.NoError(t, err)
	got := append(keeps(t, a), keeps(t, b)...)
	require.Subset(t, got, promised)
	seen := make(map[string]bool, len(got))
	for _, entry := range got {
		require.False(t, seen[entry], "%s is there twice", entry)
		seen[entry] = true
	}
	require.LessOrEqual(t, len(got), len(promised)+6, "but for the one each child was about to announce")
}

// killedChild runs a process that puts entries, kills it after some, and returns those it had announced.
func killedChild(t *testing.T, dir string) (announced []string) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewReader(out)
	for range 20 {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		announced = append(announced, strings.TrimSpace(line))
	}
	require.NoError(t, child.Process.Kill())
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	_ = child.Wait() // killed
	for line := range strings.Lines(string(rest)) {
		if strings.HasSuffix(line, "\n") {
			announced = append(announced, strings.TrimSpace(line))
		}
	}
	return announced
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := open(b, b.TempDir(), 1<<40)
			payload := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				require.NoError(b, s.Put("a", payload))
				require.NoError(b, s.Remove(s.Entries()[0].Name))
			}
		})
	}
}
