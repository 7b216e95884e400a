//go:build unix

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/plugin"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// runPlugin, set in the environment, makes this test program the plugin.
const runPlugin = "WECHAT_TEST_RUN_PLUGIN"

// soon is how long a plugin may take to start or to end on a machine that does much
// else; it is meant to end within two seconds.
const soon = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(runPlugin) != "" {
		// Not through an os.File, which would close it when it is collected.
		if _, err := unix.Write(3, []byte(strconv.Itoa(os.Getpid())+"\n")); err != nil {
			panic(err)
		}
		main()
		return
	}
	os.Exit(m.Run())
}

// How the plugin comes to be started, with the path of its program as $0.
const (
	// Vault, or a wrapper, starts the plugin and stays.
	parentStays = `"$0" & echo started >&5; wait`
	// The plugin's program is run when the one that started it is certainly gone,
	// and file 4 is closed: its first look at its parent shows another process.
	parentGone = `{ read -r _ <&4; exec "$0"; } &`
)

// process is a plugin that runs, with the ends of its pipes that Vault has.
type process struct {
	starter        *exec.Cmd
	stdout, stderr *os.File
	// gate lets a plugin run that waits for its parent to be gone.
	gate *os.File
	// alive ends when the plugin has ended, however it does; its first line is the
	// plugin's process id.
	alive *os.File
}

func start(t *testing.T, script string) *process {
	t.Helper()
	pipe := func() (read, write *os.File) {
		read, write, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = read.Close()
			_ = write.Close()
		})
		return read, write
	}
	stdout, stdoutWrite := pipe()
	stderr, stderrWrite := pipe()
	alive, aliveWrite := pipe()
	gateRead, gate := pipe()
	started, startedWrite := pipe()

	sockets, err := os.MkdirTemp("", "orphan") //nolint:usetesting // the path of a socket must be short
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(sockets)) })
	program, err := os.Executable()
	require.NoError(t, err)

	starter := exec.Command("/bin/sh", "-c", script, program)
	starter.Env = append(os.Environ(),
		runPlugin+"=1",
		plugin.HandshakeConfig.MagicCookieKey+"="+plugin.HandshakeConfig.MagicCookieValue,
		"PLUGIN_PROTOCOL_VERSIONS=5",
		"TMPDIR="+sockets,
	)
	starter.Stdout, starter.Stderr = stdoutWrite, stderrWrite
	starter.ExtraFiles = []*os.File{aliveWrite, gateRead, startedWrite}
	require.NoError(t, starter.Start())
	for _, file := range []*os.File{stdoutWrite, stderrWrite, aliveWrite, gateRead, startedWrite} {
		require.NoError(t, file.Close())
	}
	p := &process{starter: starter, stdout: stdout, stderr: stderr, gate: gate, alive: alive}
	if script == parentGone {
		require.NoError(t, starter.Wait())
	} else {
		t.Cleanup(func() {
			_ = starter.Process.Kill()
			_ = starter.Wait()
		})
		require.NoError(t, started.SetReadDeadline(time.Now().Add(soon)))
		_, err := bufio.NewReader(started).ReadString('\n')
		require.NoError(t, err)
	}
	return p
}

// awaitServing returns when the plugin has told Vault where it listens.
func (p *process) awaitServing(t *testing.T) {
	t.Helper()
	require.NoError(t, p.stdout.SetReadDeadline(time.Now().Add(soon)))
	line, err := bufio.NewReader(p.stdout).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "|grpc|")
}

// closeReaders does what the end of Vault does to the plugin's pipes.
func (p *process) closeReaders(t *testing.T) {
	t.Helper()
	require.NoError(t, p.stdout.Close())
	require.NoError(t, p.stderr.Close())
}

// awaitEnd fails the test if the plugin stays, and then ends it.
func (p *process) awaitEnd(t *testing.T) {
	t.Helper()
	require.NoError(t, p.alive.SetReadDeadline(time.Now().Add(soon)))
	var pid int
	lines := bufio.NewScanner(p.alive)
	for lines.Scan() {
		id, err := strconv.Atoi(lines.Text())
		require.NoError(t, err)
		pid = id
	}
	if err := lines.Err(); err != nil {
		if pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		require.NoError(t, err, "the plugin goes on although its Vault is gone")
	}
	require.NotZero(t, pid, "the plugin did not run")
}

func TestAPluginEndsWithItsVault(t *testing.T) {
	t.Run("killed while the plugin serves", func(t *testing.T) {
		p := start(t, parentStays)
		p.awaitServing(t)
		// A part of Vault's logging that outlives it must not keep the plugin: the
		// pipes are still read.
		require.NoError(t, p.starter.Process.Kill())
		p.awaitEnd(t)
		var log strings.Builder
		_, err := bufio.NewReader(p.stderr).WriteTo(&log)
		require.NoError(t, err)
		assert.Contains(t, log.String(), "Vault is gone, the plugin ends")
	})
	t.Run("killed before the plugin first looked at its parent", func(t *testing.T) {
		p := start(t, parentGone)
		p.closeReaders(t)
		require.NoError(t, p.gate.Close())
		p.awaitEnd(t)
	})
	t.Run("killed while the plugin serves, which process 1 had adopted before", func(t *testing.T) {
		p := start(t, parentGone)
		require.NoError(t, p.gate.Close())
		// Not an orphan to itself yet: in a container Vault may be process 1.
		p.awaitServing(t)
		p.closeReaders(t)
		p.awaitEnd(t)
	})
	t.Run("killed behind a wrapper that waits for the plugin", func(t *testing.T) {
		p := start(t, parentStays)
		p.awaitServing(t)
		p.closeReaders(t)
		p.awaitEnd(t)
	})
}

func TestAPluginIsDeafWhenNobodyReadsItsPipes(t *testing.T) {
	readPipe := func(t *testing.T) (read, write *os.File) {
		read, write, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = read.Close()
			_ = write.Close()
		})
		return read, write
	}
	unreadPipe := func(t *testing.T) *os.File {
		read, write := readPipe(t)
		require.NoError(t, read.Close())
		return write
	}
	for _, test := range []struct {
		name    string
		outputs func(t *testing.T) []*os.File
		deaf    bool
	}{
		{"both pipes are read", func(t *testing.T) []*os.File {
			_, out := readPipe(t)
			_, err := readPipe(t)
			return []*os.File{out, err}
		}, false},
		{"one pipe is read", func(t *testing.T) []*os.File {
			_, err := readPipe(t)
			return []*os.File{unreadPipe(t), err}
		}, false},
		{"a full pipe that is read slowly", func(t *testing.T) []*os.File {
			_, out := readPipe(t)
			fill(t, out)
			return []*os.File{out}
		}, false},
		{"no pipe is read", func(t *testing.T) []*os.File {
			return []*os.File{unreadPipe(t), unreadPipe(t)}
		}, true},
		{"a full pipe that is not read any more", func(t *testing.T) []*os.File {
			read, out := readPipe(t)
			fill(t, out)
			require.NoError(t, read.Close())
			return []*os.File{out}
		}, true},
		{"the log goes to a file, the pipe is not read", func(t *testing.T) []*os.File {
			file, err := os.Create(filepath.Join(t.TempDir(), "log"))
			require.NoError(t, err)
			t.Cleanup(func() { _ = file.Close() })
			return []*os.File{unreadPipe(t), file}
		}, true},
		{"no pipe: files", func(t *testing.T) []*os.File {
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			require.NoError(t, err)
			t.Cleanup(func() { _ = null.Close() })
			return []*os.File{null, null}
		}, false},
		{"nothing is open", func(*testing.T) []*os.File { return nil }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var outputs []int
			for _, file := range test.outputs(t) {
				outputs = append(outputs, int(file.Fd()))
			}
			assert.Equal(t, test.deaf, newHost(os.Getppid(), outputs...).deaf())
		})
	}
}

// fill writes to a pipe until it takes no more.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	fd := int(pipe.Fd())
	require.NoError(t, unix.SetNonblock(fd, true))
	for {
		if _, err := unix.Write(fd, make([]byte, 512)); err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			return
		}
	}
}
