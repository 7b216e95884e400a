//go:build unix

package vaulttest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"

	"github.com/hashicorp/vault/api"
)

// Plugin is a secrets engine's binary.
type Plugin struct {
	Name    string // by which it is registered and mounted
	Version string // with which it is registered, such as v1.2.3; may be empty
	SHA256  string // of the binary, in hex

	path string
}

// FindPlugin takes a plugin's binary. It keeps a copy of it in dir, so that a
// build in the meantime changes nothing.
func FindPlugin(name, version, binary, dir string) (Plugin, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return Plugin{}, err
	}
	sum := sha256.Sum256(content)
	p := Plugin{Name: name, Version: version, SHA256: hex.EncodeToString(sum[:])}
	p.path = filepath.Join(dir, p.Command())
	return p, os.WriteFile(p.path, content, 0o700)
}

// Command is the name of the plugin's binary in a plugin directory. It holds the
// version, so that there can be several.
func (p Plugin) Command() string {
	if p.Version == "" {
		return p.Name
	}
	return p.Name + "-" + p.Version
}

// Install puts a plugin's binary into the server's plugin directory. That takes a
// while where the directory is on another file system than the binary's copy.
func (s *Server) Install(p Plugin) error {
	to := filepath.Join(s.PluginDir(), p.Command())
	if err := os.Link(p.path, to); err == nil || errors.Is(err, os.ErrExist) {
		return err
	}
	content, err := os.ReadFile(p.path)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o700)
}

// Register tells the server, and with it its whole cluster, of a plugin that was
// installed on every node.
func (s *Server) Register(ctx context.Context, p Plugin) error {
	if !slices.Contains(s.plugins, p.Name) {
		s.plugins = append(s.plugins, p.Name)
	}
	return s.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{
		Name: p.Name, Type: api.PluginTypeSecrets, Command: p.Command(), SHA256: p.SHA256, Version: p.Version,
	})
}

// pluginStarted is how a server's log tells of a new process of a plugin.
var pluginStarted = regexp.MustCompile(`plugin started: .*\bpid=(\d+)`)

// Plugins returns the running processes of the server's plugins, those included
// that a killed server left behind.
func (s *Server) Plugins() ([]int, error) {
	log, err := os.ReadFile(s.log)
	if err != nil {
		return nil, err
	}
	var running []int
	for _, m := range pluginStarted.FindAllSubmatch(log, -1) {
		pid, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(s.processes, func(p *process) bool { return p.leads(pid) }) {
			running = append(running, pid)
		}
	}
	return running, nil
}

// KillPlugins kills the processes of the server's plugins, one of which has to be
// there.
func (s *Server) KillPlugins() error {
	pids, err := s.Plugins()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("%s runs no plugin", s.Host.Name)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}
