//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package redisserver

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// There are no such signals here; tryLock refuses before one is sent.
var sigStop, sigPause, sigResume = os.Kill, os.Kill, os.Kill

// tryLock says that this system has no Redis that could be run as a child.
func tryLock(*os.File) (bool, error) {
	return false, fmt.Errorf("%w: there is none for %s", ErrNotInstalled, runtime.GOOS)
}

func isolate(*exec.Cmd) {}
