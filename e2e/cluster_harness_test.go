//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// cluster is three Vault servers with one integrated storage.
type cluster struct {
	*vaulttest.Cluster
}

// newCluster starts a cluster for one test, and gives it the plugin.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	started, err := vaulttest.StartCluster(t.Context(), serverIn(filepath.Join(t.TempDir(), "cluster")), 3)
	c := &cluster{started}
	t.Cleanup(func() {
		defer c.End()
		if t.Failed() {
			return
		}
		must(t, c.Stop())
		must(t, c.Nodes[0].Leaks(c.Nodes[0].Hidden()))
	})
	must(t, err)
	must(t, c.Nodes[0].EnableAudit(t.Context()))
	must(t, c.Install(subject.plugin))
	must(t, c.Nodes[0].Register(t.Context(), subject.plugin))
	return c
}

// leader waits for a node that is active, other than the given one, which may be
// nil.
func (c *cluster) leader(t *testing.T, but *vaulttest.Server) *vaulttest.Server {
	t.Helper()
	leader, err := c.Leader(t.Context(), but)
	must(t, err)
	return leader
}

// through is the engine as it is seen through one node.
func (e *engine) through(v *vaulttest.Server) *engine {
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
// servers. Each presents the token that it was given to the platform at once.
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

// newLoad lets readers read the accounts, that many through each of the nodes,
// until end.
func newLoad(t *testing.T, nodes []*vaulttest.Server, readers int, e *engine, accounts map[string]fields) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{e: e, cancel: cancel, told: map[string]string{}, tokens: map[string]string{}}
	names := slices.Sorted(maps.Keys(accounts))
	for i := range readers * len(nodes) {
		node := nodes[i%len(nodes)]
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

func (l *load) read(ctx context.Context, node *vaulttest.Server, name, appid string) {
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
		// arrives, and there is no help for it.
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
func readRaw(ctx context.Context, node *vaulttest.Server, path string) (*api.Secret, error) {
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
		// The readers of a node share a client, and a request of theirs that fails
		// closes the connections that it takes for idle.
		for _, cause := range []string{errRedirected.Error(), "connection refused", "connection reset", "EOF", "deadline exceeded", "CloseIdleConnections called"} {
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
