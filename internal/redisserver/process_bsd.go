//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package redisserver

import (
	"os/exec"
	"syscall"
)

// isolate keeps a terminal's Ctrl-C away from the child. These systems cannot
// tie its life to ours: after a kill -9 of the parent it goes on and keeps the
// lock, and the next Start names its process id.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
