//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package spool

import "os"

// tryLock says that this system cannot tell the directory of a dead process from that of a living one.
func tryLock(*os.File) (bool, error) { return false, ErrUnsupported }
