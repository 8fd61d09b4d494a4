// Package spool keeps entries on the local disk until they can be delivered elsewhere.
//
// The idea: a directory of directories. Each process writes into one of its own and holds it by a lock that
// ends with the process, however it ends. What a dead process has left is therefore plain to see, for its
// lock is free, and any other process on the machine takes it over.
package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrFull is matched by the error of [Spool.Put] when an entry would go over the limit.
var ErrFull = errors.New("spool: full")

// ErrDamaged is matched by the error of [Spool.Read] when a file is not a whole entry.
var ErrDamaged = errors.New("spool: damaged entry")

// ErrUnsupported is matched by the error of [Open] on a system without file locks that end with their process.
var ErrUnsupported = errors.New("spool: not supported on this system")

// The names in the directory.
//
//	owner-*/lock               held by the process that owns the directory
//	owner-*/<ns>.<key>.entry   an entry, by when it was put
//	owner-*/<ns>.<key>.tmp     one that is being written; its Put has not returned
//	damaged/                   files that are no entry, for people to look at
const (
	ownerPrefix = "owner-"
	lockName    = "lock"
	entrySuffix = ".entry"
	tempSuffix  = ".tmp"
	damagedName = "damaged"
)

// openTries is how often Open makes a directory of its own, should others take it away in between.
const openTries = 10

// Entry is one entry of a spool.
type Entry struct {
	Name string // identifies it in this spool
	Key  string // what it was put under
	Size int64  // on disk, in bytes

	at int64 // when it was put, in ns since 1970
}

// Spool is a process's part of a directory. It is safe for concurrent use.
type Spool struct {
	root  string
	own   string // our directory below it
	lock  *os.File
	limit int64
	log   *slog.Logger

	mu      sync.Mutex // guards what follows
	entries map[string]Entry
	bytes   int64 // of the entries, and of those that are being written
	last    int64 // the time in the latest name, so that no two are equal
}

// Open makes a part of a directory this process's own, and takes over what dead processes have left in
// it. The directory is created, for its owner alone, if it is not there. It must be on a disk of this
// machine: a lock on a network share may not end with its process.
//
// limit is how many bytes this process may keep; what it takes over counts, but is never refused. Damaged
// files are logged and set aside.
func Open(dir string, limit int64, log *slog.Logger) (*Spool, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &Spool{root: root, limit: limit, log: log, entries: make(map[string]Entry)}
	for range openTries {
		if s.own, err = os.MkdirTemp(root, ownerPrefix); err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		if s.lock, err = acquire(s.own); err != nil {
			_ = os.Remove(s.own) // empty: we have just made it
			return nil, fmt.Errorf("spool: %w", err)
		}
		if s.lock != nil {
			break
		}
	}
	if s.lock == nil {
		return nil, fmt.Errorf("spool: %s: others take each new directory away", root)
	}
	if err := syncDir(root); err != nil {
		return nil, errors.Join(fmt.Errorf("spool: %w", err), s.Close())
	}
	if _, err := s.Adopt(); err != nil {
		log.Warn("spool: entries of a dead process could not be taken over", slog.Any("error", err))
	}
	return s, nil
}

// Close gives the entries up to the next process that looks. None may be put any more.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.entries) == 0 {
		// Whoever comes between the two finds an empty directory, and removes it in our place.
		_ = os.Remove(filepath.Join(s.own, lockName))
		_ = os.Remove(s.own)
	}
	return s.lock.Close()
}

// Put writes an entry under a key of 1 to 64 letters, digits, - and _. When it returns nil, the entry
// outlives a crash of the process and of the machine. An entry over the limit is refused with an error
// that matches [ErrFull]; other errors are the disk's.
func (s *Spool) Put(key string, payload []byte) error {
	if !validKey(key) {
		return fmt.Errorf("spool: key %q is not 1 to %d letters, digits, - and _", key, maxKey)
	}
	e, err := s.reserve(key, int64(headerSize+len(payload)))
	if err != nil {
		return err
	}
	err = s.write(e, payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.bytes -= e.Size
		return fmt.Errorf("spool: %w", err)
	}
	s.entries[e.Name] = e
	return nil
}

// reserve names an entry and takes its bytes from the limit.
func (s *Spool) reserve(key string, size int64) (Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+size > s.limit {
		return Entry{}, fmt.Errorf("%w: %d bytes are kept, %d more would go over %d", ErrFull, s.bytes, size, s.limit)
	}
	s.bytes += size
	s.last = max(s.last+1, time.Now().UnixNano())
	return Entry{Name: entryName(s.last, key), Key: key, Size: size, at: s.last}, nil
}

// write makes an entry's file under another name first, so that a crash leaves it whole or not at all.
func (s *Spool) write(e Entry, payload []byte) (err error) {
	path := filepath.Join(s.own, e.Name)
	temp := strings.TrimSuffix(path, entrySuffix) + tempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	written := temp
	defer func() {
		if err != nil {
			_ = os.Remove(written) // its Put fails; nothing must deliver it later
		}
	}()
	header := encodeHeader(payload)
	_, err = f.Write(header[:])
	if err == nil {
		_, err = f.Write(payload)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	written = path
	return syncDir(s.own)
}

// Entries are what the spool keeps, the oldest first.
func (s *Spool) Entries() []Entry {
	return s.list(func(Entry) bool { return true })
}

// Under are the entries that were put under a key, the oldest first.
func (s *Spool) Under(key string) []Entry {
	return s.list(func(e Entry) bool { return e.Key == key })
}

func (s *Spool) list(want func(Entry) bool) (all []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if want(e) {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Usage is how many entries the spool keeps, and how many bytes they are.
func (s *Spool) Usage() (entries int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries), s.bytes
}

// Read returns what was put. A file that is no whole entry is set aside, logged and forgotten, and the
// error matches [ErrDamaged]; other errors are the disk's, and the entry stays.
func (s *Spool) Read(name string) ([]byte, error) {
	payload, err := readEntry(filepath.Join(s.own, name))
	if errors.Is(err, ErrDamaged) {
		s.SetAside(name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %s: %w", name, err)
	}
	return payload, nil
}

// Remove forgets an entry. One that is gone already is no error.
func (s *Spool) Remove(name string) error {
	if err := os.Remove(filepath.Join(s.own, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	// Not synced: an entry that comes back after a crash of the machine is delivered twice, which its
	// receiver must bear anyway.
	s.forget(name)
	return nil
}

func (s *Spool) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= s.entries[name].Size
	delete(s.entries, name)
}

// SetAside moves an entry of which nothing can be made to the directory "damaged", and logs why.
func (s *Spool) SetAside(name string, why error) {
	s.setAside(s.own, name, why)
	s.forget(name)
}

func (s *Spool) setAside(dir, name string, why error) {
	aside := filepath.Join(s.root, damagedName)
	err := os.MkdirAll(aside, 0o700)
	if err == nil {
		err = os.Rename(filepath.Join(dir, name), filepath.Join(aside, name))
	}
	s.log.Error("spool: file set aside", slog.String("file", name), slog.String("dir", aside),
		slog.Any("reason", why), slog.Any("error", err))
}

// Adopt takes over the entries of processes that are dead, and says how many those were. The error joins
// those of the directories that could not be taken over.
func (s *Spool) Adopt() (int, error) {
	dirs, err := os.ReadDir(s.root)
	if err != nil {
		return 0, fmt.Errorf("spool: %w", err)
	}
	var errs []error
	adopted := 0
	for _, d := range dirs {
		dir := filepath.Join(s.root, d.Name())
		if !d.IsDir() || !strings.HasPrefix(d.Name(), ownerPrefix) || dir == s.own {
			continue
		}
		n, err := s.adopt(dir)
		adopted += n
		if err != nil {
			errs = append(errs, fmt.Errorf("spool: %w", err))
		}
	}
	return adopted, errors.Join(errs...)
}

// adopt empties one directory if its owner is dead, and removes it.
func (s *Spool) adopt(dir string) (adopted int, err error) {
	lock, err := acquire(dir)
	if lock == nil {
		return 0, err
	}
	defer lock.Close()
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, f := range files {
		moved, err := s.adoptFile(dir, f)
		if moved {
			adopted++
		}
		errs = append(errs, err)
	}
	if adopted > 0 {
		errs = append(errs, syncDir(s.own), syncDir(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return adopted, err
	}
	_ = os.Remove(filepath.Join(dir, lockName))
	_ = os.Remove(dir) // not empty: another process looks at this moment, and removes it
	return adopted, nil
}

// adoptFile takes over one file of a dead process, and says whether it is an entry.
func (s *Spool) adoptFile(dir string, f fs.DirEntry) (bool, error) {
	e, isEntry := parseName(f.Name())
	switch {
	case f.Name() == lockName:
		return false, nil
	case strings.HasSuffix(f.Name(), tempSuffix):
		return false, os.Remove(filepath.Join(dir, f.Name())) // its Put never returned
	case !isEntry || !f.Type().IsRegular():
		s.setAside(dir, f.Name(), errors.New("not an entry"))
		return false, nil
	}
	info, err := f.Info()
	if err != nil {
		return false, err
	}
	if err := os.Rename(filepath.Join(dir, e.Name), filepath.Join(s.own, e.Name)); err != nil {
		return false, err
	}
	e.Size = info.Size()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[e.Name] = e
	s.bytes += e.Size
	return true, nil
}

// acquire takes a directory's lock. Without an error and a file, somebody else has it.
func acquire(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the directory has just gone
	}
	if err != nil {
		return nil, err
	}
	got, err := tryLock(f)
	// Between the two steps the file may have been removed: then this is the lock of nothing.
	if err == nil && got && samePlace(f, path) {
		return f, nil
	}
	return nil, errors.Join(err, f.Close())
}

func samePlace(f *os.File, path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	held, err := f.Stat()
	return err == nil && os.SameFile(held, there)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

const maxKey = 64

func validKey(key string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	return key != "" && len(key) <= maxKey && strings.Trim(key, allowed) == ""
}

func entryName(at int64, key string) string {
	return strconv.FormatInt(at, 10) + "." + key + entrySuffix
}

// parseName reads what entryName wrote.
func parseName(name string) (Entry, bool) {
	stem, ok := strings.CutSuffix(name, entrySuffix)
	if !ok {
		return Entry{}, false
	}
	when, key, _ := strings.Cut(stem, ".")
	at, err := strconv.ParseInt(when, 10, 64)
	if err != nil || !validKey(key) || entryName(at, key) != name {
		return Entry{}, false
	}
	return Entry{Name: name, Key: key, at: at}, true
}
