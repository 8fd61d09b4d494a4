//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package redisserver

import (
	"errors"
	"os"
	"syscall"
)

const (
	sigStop   = syscall.SIGTERM
	sigPause  = syscall.SIGSTOP
	sigResume = syscall.SIGCONT
)

// tryLock takes an advisory lock that belongs to the open file: it ends with the
// last process that holds a copy, so nothing stale is left after a crash.
func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
