//go:build unix

package vaulttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"
)

// Patience bounds everything that a healthy server does within a few seconds,
// generously: the machine may be busy with other tests.
const Patience = time.Minute

// Config is how a server is to be.
type Config struct {
	Host     Host
	Dir      string // for all files of the server; must not exist yet
	LogLevel string // of the server's log; Plugins needs at least debug
	Raw      bool   // storage can be read and written through sys/raw/
}

// Server is a server with Raft storage on a loopback port, and its files. It can
// be stopped, killed and started again. Its methods are for one goroutine at a
// time, but for Hide and for those of the client.
type Server struct {
	*api.Client // with the root token once there is one, and without retries

	Host Host

	dir, name string
	log       string // the files that it writes
	audit     string
	unsealKey string
	processes []*process // the latest one last, running or not
	plugins   []string   // the names of those that were registered

	mu     sync.Mutex
	hidden map[string]bool // what log and audit must not hold in the clear
}

// New prepares a server. SetUp or Join has to follow, and End in the end.
func New(config Config) (*Server, error) { return newServer(config, "node") }

func newServer(config Config, name string) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(config.Dir), 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(config.Dir, 0o700); err != nil {
		return nil, err
	}
	// A host refuses a plugin directory that is reached by a symbolic link.
	dir, err := filepath.EvalSymlinks(config.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Host: config.Host, dir: dir, name: name, hidden: map[string]bool{},
		log: filepath.Join(dir, "server.log"), audit: filepath.Join(dir, "audit.log"),
	}
	for _, sub := range []string{s.raftDir(), s.PluginDir()} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			return nil, err
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := s.configure(config, port); err != nil {
		return nil, err
	}
	client := api.DefaultConfig()
	if client.Error != nil {
		return nil, client.Error
	}
	client.Address = address(port)
	if s.Client, err = api.NewClient(client); err != nil {
		return nil, err
	}
	s.SetMaxRetries(0) // the caller looks at the first answer
	return s, nil
}

// configure writes the server's configuration.
func (s *Server) configure(config Config, port int) error {
	settings := map[string]any{
		"storage": map[string]any{"raft": map[string]any{
			"path": s.raftDir(), "node_id": s.name, "performance_multiplier": "1",
		}},
		"listener": map[string]any{"tcp": map[string]any{
			"address": fmt.Sprintf("127.0.0.1:%d", port), "tls_disable": true,
		}},
		"api_addr":             address(port),
		"cluster_addr":         address(port + 1),
		"disable_mlock":        true,
		"plugin_directory":     s.PluginDir(),
		"log_level":            config.LogLevel,
		"raw_storage_endpoint": config.Raw,
	}
	maps.Copy(settings, s.Host.settings())
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	return os.WriteFile(s.configFile(), text, 0o600)
}

func address(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

func (s *Server) configFile() string { return filepath.Join(s.dir, "server.json") }
func (s *Server) raftDir() string    { return filepath.Join(s.dir, "raft") }

// PluginDir is the server's plugin directory, which no other server uses.
func (s *Server) PluginDir() string { return filepath.Join(s.dir, "plugins") }

// AuditFile is where the server's audit device writes, once there is one.
func (s *Server) AuditFile() string { return s.audit }

// freePort returns a port that is free, and so is the next one, where a host
// serves its cluster. It is not one of those that the system hands out to
// clients, so that it is still free after a restart.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 20000 + 2*rand.IntN(5000)
		var first, second net.Listener
		if first, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			continue
		}
		second, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		first.Close()
		if err == nil {
			return port, second.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// SetUp starts the server for the first time, as the only one or the first of a
// cluster, initialises and unseals it.
func (s *Server) SetUp(ctx context.Context) error {
	if err := s.launch(ctx); err != nil {
		return err
	}
	keys, err := s.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return err
	}
	s.unsealKey = keys.Keys[0]
	s.SetToken(keys.RootToken)
	s.Hide(keys.RootToken)
	return s.Unseal(ctx)
}

// Join starts the server for the first time, as another node of the cluster that
// the first server is of.
func (s *Server) Join(ctx context.Context, first *Server) error {
	s.unsealKey = first.unsealKey
	s.SetToken(first.Token())
	if err := s.launch(ctx); err != nil {
		return err
	}
	if _, err := s.Sys().RaftJoinWithContext(ctx, &api.RaftJoinRequest{LeaderAPIAddr: first.Address()}); err != nil {
		return err
	}
	return s.Unseal(ctx)
}

// Start starts the server again, and unseals it.
func (s *Server) Start(ctx context.Context) error {
	if err := s.launch(ctx); err != nil {
		return err
	}
	return s.Unseal(ctx)
}

// launch starts the program, and waits until it answers.
func (s *Server) launch(ctx context.Context) error {
	p, err := startProcess(s.log, s.Host.Path, "server", "-config", s.configFile())
	if p != nil {
		s.processes = append(s.processes, p)
	}
	if err != nil {
		return err
	}
	return s.Await(ctx, "answer", func() error {
		_, err := s.Sys().SealStatusWithContext(ctx)
		return err
	})
}

// Unseal unseals the server, and waits until it answers requests, itself or by
// handing them to the active node of its cluster.
func (s *Server) Unseal(ctx context.Context) error {
	if _, err := s.Sys().UnsealWithContext(ctx, s.unsealKey); err != nil {
		return err
	}
	return s.Await(ctx, "answer requests", func() error {
		health, err := s.Sys().HealthWithContext(ctx)
		if err == nil && health.Sealed {
			err = errors.New("it is sealed")
		}
		if err == nil {
			_, err = s.Auth().Token().LookupSelfWithContext(ctx)
		}
		return err
	})
}

// Active tells whether the server is the active one of its cluster.
func (s *Server) Active(ctx context.Context) bool {
	health, err := s.Sys().HealthWithContext(ctx)
	return err == nil && health.Initialized && !health.Sealed && !health.Standby
}

// Await repeats what the server needs a moment for, until it succeeds. what is
// what the server is waited for to do: "answer requests".
func (s *Server) Await(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
			continue
		case <-s.process().exited:
			err = fmt.Errorf("it ended; before that: %w", err)
		case <-ctx.Done():
		}
		return fmt.Errorf("%s does not %s: %w; its log ends with\n%s", s.Host.Name, what, err, s.LogTail())
	}
}

// process is the latest one.
func (s *Server) process() *process { return s.processes[len(s.processes)-1] }

// PID is the number of the server's latest process.
func (s *Server) PID() int { return s.process().Process.Pid }

// Running tells whether the server's process is there.
func (s *Server) Running() bool { return len(s.processes) > 0 && s.process().running() }

// Stop ends the server as an operator would, with SIGTERM. One that does not run
// is none that could be stopped: that is an error.
func (s *Server) Stop() error { return s.signal(syscall.SIGTERM) }

// Kill ends the server, and nothing but it, with SIGKILL: its plugins become
// orphans.
func (s *Server) Kill() error { return s.signal(syscall.SIGKILL) }

func (s *Server) signal(signal os.Signal) error {
	if !s.Running() {
		return fmt.Errorf("%s does not run", s.Host.Name)
	}
	if err := s.process().Process.Signal(signal); err != nil {
		return err
	}
	select {
	case <-s.process().exited:
		return nil
	case <-time.After(Patience):
		return fmt.Errorf("%s does not end on the signal %q; its log ends with\n%s", s.Host.Name, signal, s.LogTail())
	}
}

// End ends every process of the server that is still there. It may be called at
// any time, and more than once.
func (s *Server) End() {
	for _, p := range s.processes {
		p.end()
	}
}

// noise are the lines of a server's log that tell nothing of a plugin's fault.
var noise = regexp.MustCompile(`\[TRACE\]|\[DEBUG\] (?:audit|core|identity|expiration|storage)`)

// LogTail returns the last lines of the server's log, without the noise.
func (s *Server) LogTail() string {
	const lines = 20
	log, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	telling := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(log)), "\n"), noise.MatchString)
	return strings.Join(telling[max(0, len(telling)-lines):], "\n")
}
