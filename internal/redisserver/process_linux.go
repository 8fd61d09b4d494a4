package redisserver

import (
	"os/exec"
	"syscall"
)

// isolate keeps a terminal's Ctrl-C away from the child, so that we end it in
// our own order, and has the kernel end it when we are killed. The signal is
// SIGTERM because a killed Redis may lose up to two seconds of its file.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
