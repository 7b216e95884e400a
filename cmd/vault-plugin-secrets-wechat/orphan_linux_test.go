package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestATerminalThatWasClosedIsNotAVaultThatIsGone(t *testing.T) {
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_WRONLY|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer func() { _ = terminal.Close() }()
	require.NoError(t, control.Close())

	fd := int(terminal.Fd())
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	_, err = unix.Poll(poll, 0)
	require.NoError(t, err)
	require.NotZero(t, poll[0].Revents&unix.POLLHUP, "the terminal is gone")
	assert.False(t, newHost(os.Getppid(), fd, fd).deaf())
}
