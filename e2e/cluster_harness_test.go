//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// cluster is three Vault servers with one integrated storage. They write into
// one server log and one audit file, those of the first node.
type cluster struct {
	nodes []*vault
}

// newCluster starts a cluster for one test, and gives it the plugin.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	// Vault refuses a plugin directory that is reached by a symbolic link.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	c := &cluster{}
	for i := range 3 {
		v, err := newVault(filepath.Join(dir, fmt.Sprintf("node-%d", i)))
		must(t, err)
		t.Cleanup(v.destroy)
		must(t, v.becomeNode(fmt.Sprintf("node-%d", i)))
		if i == 0 {
			must(t, v.setUp())
			// A new node would otherwise have no vote for its first ten seconds.
			_, err := v.Logical().Write("sys/storage/raft/autopilot/configuration", fields{"server_stabilization_time": "1s"})
			must(t, err)
		} else {
			must(t, v.join(c.nodes[0]))
		}
		c.nodes = append(c.nodes, v)
	}
	eventually(t, patience, "all nodes vote", func() bool { return c.voters(t) == len(c.nodes) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the cluster ends with\n%s", c.nodes[0].logTail())
			return
		}
		for _, v := range c.nodes {
			must(t, v.stop())
		}
		must(t, c.nodes[0].leaks(c.nodes[0].everyHidden()))
	})
	return c
}

// becomeNode makes a server that was not started yet one of a cluster's: with a
// name and a plugin directory of its own, and with the first node's log and
// audit file, which the cluster's configuration names for all of them.
func (v *vault) becomeNode(name string) error {
	raw, err := os.ReadFile(v.configFile())
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		return err
	}
	config["storage"].(map[string]any)["raft"].(map[string]any)["node_id"] = name
	config["plugin_directory"] = v.pluginDir()
	if raw, err = json.Marshal(config); err != nil {
		return err
	}
	if err := os.WriteFile(v.configFile(), raw, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(v.pluginDir(), 0o700); err != nil {
		return err
	}
	if err := os.Link(filepath.Join(subject.plugins, pluginName), filepath.Join(v.pluginDir(), pluginName)); err != nil {
		return err
	}
	first := filepath.Join(filepath.Dir(v.dir), "node-0")
	if v.dir == first {
		return nil
	}
	return errors.Join(
		os.Symlink(filepath.Join(first, filepath.Base(v.logFile())), v.logFile()),
		os.Symlink(filepath.Join(first, filepath.Base(v.auditFile())), v.auditFile()),
	)
}

func (v *vault) pluginDir() string { return filepath.Join(v.dir, "plugins") }

// join starts the server for the first time, as a node of another's cluster.
func (v *vault) join(first *vault) error {
	v.unsealKey = first.unsealKey
	v.SetToken(first.Token())
	if err := v.launch(); err != nil {
		return err
	}
	if _, err := v.Sys().RaftJoin(&api.RaftJoinRequest{LeaderAPIAddr: first.address}); err != nil {
		return err
	}
	return v.openNode()
}

// rejoin starts a node again.
func (v *vault) rejoin() error {
	if err := v.launch(); err != nil {
		return err
	}
	return v.openNode()
}

// openNode unseals a node and waits until it answers requests, itself or by
// handing them to the active one.
func (v *vault) openNode() error {
	if _, err := v.Sys().Unseal(v.unsealKey); err != nil {
		return err
	}
	return v.await("does not join the others", func() bool {
		if health, err := v.Sys().Health(); err != nil || health.Sealed {
			return false
		}
		_, err := v.Auth().Token().LookupSelf()
		return err == nil
	})
}

// runs tells whether the server's process is there.
func (v *vault) runs() bool {
	select {
	case <-v.process().exited:
		return false
	default:
		return true
	}
}

// voters returns how many nodes have a vote.
func (c *cluster) voters(t *testing.T) int {
	t.Helper()
	answer, err := c.nodes[0].Logical().Read("sys/storage/raft/configuration")
	must(t, err)
	n := 0
	for _, server := range answer.Data["config"].(fields)["servers"].([]any) {
		if server.(fields)["voter"].(bool) {
			n++
		}
	}
	return n
}

// leader waits for a node that is active, other than the given one, which may be
// nil.
func (c *cluster) leader(t *testing.T, but *vault) *vault {
	t.Helper()
	var leader *vault
	eventually(t, patience, "a node is active", func() bool {
		for _, v := range c.nodes {
			if health, err := v.Sys().Health(); v != but && err == nil && health.Initialized && !health.Sealed && !health.Standby {
				leader = v
				return true
			}
		}
		return false
	})
	return leader
}

// through is the engine as it is seen through one node.
func (e *engine) through(v *vault) *engine {
	return &engine{Sim: e.Sim, vault: v, path: e.path, url: e.url}
}

// forced returns how often the platform was asked to refresh an account's token
// by force.
func (e *engine) forced(account fields) int {
	n := 0
	for _, call := range e.Calls(account["appid"].(string)) {
		if call.Forced {
			n++
		}
	}
	return n
}

// load is a number of readers that go on through whatever happens to the
// cluster. Each presents the token that it was given to the platform at once.
type load struct {
	e      *engine
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu     sync.Mutex
	seen   tally
	wrong  []string          // what may never be
	told   map[string]string // what the answers said of a token, by the token
	tokens map[string]string // by what they said
}

// tally counts what readers saw.
type tally struct {
	reads    int            // that brought a token
	overlaps int            // of them, those that met a forced refresh
	failures map[string]int // by what they said
}

const (
	readersPerNode = 2
	readerPause    = 25 * time.Millisecond
	readerPatience = 15 * time.Second
)

// newLoad lets readers read the accounts, through all nodes, until end.
func newLoad(t *testing.T, c *cluster, e *engine, accounts map[string]fields) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{e: e, cancel: cancel, told: map[string]string{}, tokens: map[string]string{}}
	names := slices.Sorted(maps.Keys(accounts))
	for i := range readersPerNode * len(c.nodes) {
		node := c.nodes[i%len(c.nodes)]
		l.ended.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				name := names[n%len(names)]
				l.read(ctx, node, name, accounts[name]["appid"].(string))
				time.Sleep(readerPause)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// end stops the readers.
func (l *load) end() {
	l.cancel()
	l.ended.Wait()
}

func (l *load) read(ctx context.Context, node *vault, name, appid string) {
	patient, cancel := context.WithTimeout(ctx, readerPatience)
	defer cancel()
	begin := time.Now()
	answer, err := readRaw(patient, node, l.e.path+"/token/"+name)
	if ctx.Err() != nil {
		return
	}
	var whose string
	var errcode int
	overlaps := false
	if err == nil {
		whose, errcode = l.e.Check(accessToken(answer))
		// A token that was handed out just before a forced refresh is dead when it
		// arrives, and nobody can help it.
		overlaps = l.forcedSince(appid, begin)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		if l.seen.failures == nil {
			l.seen.failures = map[string]int{}
		}
		said, vaults := failure(err)
		l.seen.failures[said]++
		if !vaults {
			l.wrong = append(l.wrong, fmt.Sprintf("reading %s failed, and not because of Vault: %v", name, err))
		}
		return
	case whose != appid:
		l.wrong = append(l.wrong, fmt.Sprintf("%s was answered with a token of %q, not of %s", name, whose, appid))
	case errcode != 0 && !overlaps:
		l.wrong = append(l.wrong, fmt.Sprintf("%s was answered with a token that the platform refuses: %d, rotated at %v, read at %s",
			name, errcode, answer.Data["last_vault_rotation"], begin.UTC().Format(time.RFC3339Nano)))
	}
	l.seen.reads++
	if overlaps {
		l.seen.overlaps++
	}
	token := accessToken(answer)
	said := fmt.Sprint(name, answer.Data["last_vault_rotation"], answer.Data["expire_time"])
	if before, known := l.told[token]; known && before != said {
		l.wrong = append(l.wrong, fmt.Sprintf("of one token of %s was said first %s, then %s", name, before, said))
	}
	if before, known := l.tokens[said]; known && before != token {
		l.wrong = append(l.wrong, "of two tokens was said the same: "+said)
	}
	l.told[token], l.tokens[said] = said, token
}

// errRedirected is returned where a node sends its reader on to another, and that
// one does, too: neither of them is active any more, or yet.
var errRedirected = errors.New("redirected twice")

// readRaw reads a path. The client's own way of reading takes a path that is not
// found and a redirect that it does not follow for an answer.
func readRaw(ctx context.Context, node *vault, path string) (*api.Secret, error) {
	response, err := node.Logical().ReadRawWithContext(ctx, path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusTemporaryRedirect {
		return nil, errRedirected
	}
	answer, err := api.ParseSecret(response.Body)
	if err == nil && answer == nil {
		err = fmt.Errorf("status %d without an answer", response.StatusCode)
	}
	return answer, err
}

// forcedSince tells whether the platform was asked for a forced refresh of an
// account since then.
func (l *load) forcedSince(appid string, then time.Time) bool {
	return slices.ContainsFunc(l.e.Calls(appid), func(call wechatsim.Call) bool {
		return call.Forced && !call.Time.Before(then)
	})
}

// soFar returns what was seen since take was called last.
func (l *load) soFar() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.seen
	seen.failures = maps.Clone(seen.failures)
	return seen
}

// take returns what was seen since the last time, and reports what may never be.
func (l *load) take(t *testing.T) tally {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, wrong := range l.wrong {
		t.Error(wrong)
	}
	seen := l.seen
	l.seen, l.wrong = tally{}, nil
	return seen
}

// vaultsFailures are the texts of the answers that Vault gives by itself while
// no node is active, or one is coming or going.
var vaultsFailures = map[int][]string{
	http.StatusServiceUnavailable:  {"Vault is sealed", "no active Vault instance found"},
	http.StatusInternalServerError: {"local node not active but active cluster node not found"},
}

// failure sums up what a reader was told instead of a token, and says whether
// that is Vault's own failure.
func failure(err error) (said string, vaults bool) {
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		for _, cause := range []string{errRedirected.Error(), "connection refused", "connection reset", "EOF", "deadline exceeded"} {
			if strings.Contains(err.Error(), cause) {
				return cause, true
			}
		}
		return err.Error(), false
	}
	text := strings.Join(answer.Errors, "; ")
	said = fmt.Sprintf("%d %s", answer.StatusCode, text)
	return said, slices.ContainsFunc(vaultsFailures[answer.StatusCode], func(s string) bool { return strings.Contains(text, s) })
}

func (s tally) String() string {
	failed := 0
	for _, n := range s.failures {
		failed += n
	}
	text := fmt.Sprintf("%d reads, %d of them beside a forced refresh, %d failures", s.reads, s.overlaps, failed)
	for _, said := range slices.Sorted(maps.Keys(s.failures)) {
		text += fmt.Sprintf("\n\t%4d %s", s.failures[said], said)
	}
	return text
}
