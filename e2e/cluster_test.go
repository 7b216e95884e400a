//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// highlyAvailable is the engine on a cluster, under a load of readers.
type highlyAvailable struct {
	*cluster
	*engine
	load *load

	lasting map[string]fields      // accounts whose tokens outlive the test, not to be asked for again
	brief   map[string]fields      // accounts whose tokens are replaced again and again
	tokens  map[string]*api.Secret // the tokens of the lasting ones
	config  fields                 // of one of them
	leaked  fields                 // an account with a token that leaks
	rotated fields                 // an account that is rotated

	leakedToken string
	successions int // of leaders, so far
}

// briefLife is the life of the brief accounts' tokens. They are replaced
// briefPeriod after they were issued, and count as ended five seconds before
// their end.
const (
	briefLife   = 30 * time.Second
	briefPeriod = 10 * time.Second
)

// answerTime is how long the platform takes for an answer, so that there are calls
// in flight whatever happens to the leader.
const answerTime = 100 * time.Millisecond

// One cluster goes through everything that may happen to one, while readers read
// on. The parts build on each other: a revocation that the last kill leaves
// pending has to come through all that follows.
func TestCluster(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := newCluster(t)
	h := &highlyAvailable{
		cluster: c, engine: newEngineOn(t, c.Nodes[0]),
		lasting: map[string]fields{}, brief: map[string]fields{}, tokens: map[string]*api.Secret{},
	}
	all := map[string]fields{}
	for i := range 8 {
		name := fmt.Sprintf("team-%d/lasting", i)
		h.lasting[name] = h.account(wechatsim.Account{})
		all[name] = h.lasting[name]
	}
	for i := range 8 {
		name := fmt.Sprintf("team-%d/brief", i)
		h.brief[name] = h.account(wechatsim.Account{Lifetime: briefLife, Overlap: briefLife - 5*time.Second})
		all[name] = h.brief[name]
	}
	// One forced refresh does not kill the leaked token: it takes both.
	h.leaked = h.account(wechatsim.Account{ForceKeepsOld: true})
	h.rotated = h.account(wechatsim.Account{})
	all["leaked"], all["rotated"] = h.leaked, h.rotated
	for name, account := range all {
		h.configure(t, name, account, noSync)
	}
	for name := range h.lasting {
		h.tokens[name] = h.token(t, name)
	}
	h.config = h.engine.config(t, "team-0/lasting")
	configured := time.Now()
	t.Logf("the cluster was ready after %s", configured.Sub(begin).Round(time.Millisecond))
	h.SetLatency(answerTime)
	h.load = newLoad(t, c.Nodes, readersPerNode, h.engine, all)

	if h.phase(t, "nothing happens", h.watch) &&
		h.phase(t, "kill -9 of the leader", h.killLeader) &&
		h.phase(t, "kill -9 of the leader while it rotates", h.killRotatingLeader) &&
		h.phase(t, "kill -9 of the leader after the first half of a revocation", h.killRevokingLeader) &&
		h.phase(t, "seal and unseal of the leader", h.sealLeader) &&
		h.phase(t, "step-down of the leader", h.stepDown) &&
		h.phase(t, "reload on all nodes", h.reload) &&
		h.phase(t, "rolling upgrade", h.upgrade) {
		h.phase(t, "the revocation completes", h.completeRevocation)
	}

	h.load.end()
	// A leader may have ended between an answer and its storage.
	most := int(time.Since(configured)/briefPeriod) + 1 + h.successions
	for name, account := range h.brief {
		if n := h.calls(account); n > most {
			t.Errorf("there were %d calls for %s, want no more than %d", n, name, most)
		}
	}
	t.Logf("all took %s", time.Since(begin).Round(time.Millisecond))
}

// phase lets something happen to the cluster, and then looks whether all is as it
// has to be. It reports whether the test may go on.
func (h *highlyAvailable) phase(t *testing.T, what string, happen func(*testing.T)) bool {
	t.Helper()
	return t.Run(what, func(t *testing.T) {
		begin, before := time.Now(), h.briefCalls()
		defer func() {
			seen := h.load.take(t)
			if seen.reads == 0 {
				t.Error("no token was read")
			}
			t.Logf("%s, %d calls for the %d brief accounts; readers saw %s",
				time.Since(begin).Round(time.Millisecond), h.briefCalls()-before, len(h.brief), seen)
		}()
		happen(t)
		h.intact(t)
	})
}

func (h *highlyAvailable) briefCalls() int {
	n := 0
	for _, account := range h.brief {
		n += h.calls(account)
	}
	return n
}

// watch lets the readers read for a while.
func (h *highlyAvailable) watch(t *testing.T) {
	t.Helper()
	eventually(t, patience, "readers read", func() bool { return h.load.soFar().reads > 100 })
	if seen := h.load.soFar(); len(seen.failures) > 0 {
		t.Errorf("nothing happened, and yet readers saw %s", seen)
	}
}

// intact checks that nothing stored is lost, whichever node is asked, and that
// nothing of it had to be asked for again.
func (h *highlyAvailable) intact(t *testing.T) {
	t.Helper()
	for _, node := range h.Nodes {
		e := h.through(node)
		for name, want := range h.tokens {
			sameToken(t, want, e.token(t, name))
		}
		sameFields(t, h.config, e.config(t, "team-0/lasting"))
		if got, want := len(e.list(t, "config")), 10; got != want {
			t.Errorf("there are %d levels and accounts, want %d", got, want)
		}
		h.counted(t, node, "rotated", h.forced(h.rotated))
		for name := range h.brief {
			e.token(t, name)
		}
	}
	for name, account := range h.lasting {
		if n := h.calls(account); n != 1 {
			t.Errorf("there were %d calls for %s, want the one that verified it", n, name)
		}
	}
}

// status reads an account's status.
func (e *engine) status(t *testing.T, name string) fields {
	t.Helper()
	answer, err := e.vault.Logical().Read(e.path + "/status/" + name)
	must(t, err)
	return answer.Data
}

// counted checks how many forced refreshes of an account are in the history, as a
// node tells.
func (h *highlyAvailable) counted(t *testing.T, node *vaulttest.Server, name string, want int) {
	t.Helper()
	remaining, err := h.through(node).status(t, name)["rotations_remaining"].(json.Number).Int64()
	must(t, err)
	if got := 20 - int(remaining); got != want {
		t.Errorf("%d forced refreshes of %s are counted, want %d", got, name, want)
	}
}

// kill kills the leader, waits for the next one, and starts the killed node
// again.
func (h *highlyAvailable) kill(t *testing.T, leader *vaulttest.Server) {
	t.Helper()
	if len(pluginsOf(t, leader)) == 0 {
		t.Fatal("no process of the plugin is found")
	}
	happened := time.Now()
	must(t, leader.Kill())
	h.succeeded(t, leader, happened)
	pluginEnds(t, leader)
	must(t, leader.Start(t.Context()))
}

// succeeded waits until another node is the leader, and every node that runs
// serves tokens.
func (h *highlyAvailable) succeeded(t *testing.T, old *vaulttest.Server, happened time.Time) {
	t.Helper()
	h.leader(t, old)
	h.successions++
	active := time.Since(happened)
	for _, node := range h.Nodes {
		eventually(t, patience, "a node serves tokens", func() bool {
			_, err := h.through(node).readToken("team-0/lasting")
			return err == nil || !node.Running()
		})
	}
	t.Logf("the next leader was active after %s, tokens were served through all nodes after %s",
		active.Round(time.Millisecond), time.Since(happened).Round(time.Millisecond))
}

func (h *highlyAvailable) killLeader(t *testing.T) {
	t.Helper()
	h.kill(t, h.leader(t, nil))
}

// killRotatingLeader kills the leader when WeChat has refreshed a token by force
// and the leader does not know it yet.
func (h *highlyAvailable) killRotatingLeader(t *testing.T) {
	t.Helper()
	leader, before := h.leader(t, nil), h.calls(h.rotated)
	old := h.token(t, "rotated")
	// WeChat acts at once and answers when the leader is no longer there.
	const unanswered = 2 * time.Second
	h.SetLatency(unanswered)
	answered := make(chan error, 1)
	go func() {
		_, err := leader.Logical().Write(h.path+"/rotate/rotated", nil)
		answered <- err
	}()
	eventually(t, patience, "the token is refreshed by force", func() bool { return h.forced(h.rotated) == 1 })
	h.SetLatency(answerTime)
	h.kill(t, leader)
	if err := <-answered; err == nil {
		t.Error("the leader answered before it was killed")
	}
	for _, node := range h.Nodes {
		otherToken(t, old, h.through(node).token(t, "rotated"))
	}
	if n := h.calls(h.rotated) - before; n != 2 {
		t.Errorf("there were %d calls, want the forced one and one that tells what became of it", n)
	}
}

// killRevokingLeader kills the leader between the two forced refreshes of a
// revocation.
func (h *highlyAvailable) killRevokingLeader(t *testing.T) {
	t.Helper()
	leader := h.leader(t, nil)
	h.leakedToken = accessToken(h.token(t, "leaked"))
	_, err := leader.Logical().Write(h.path+"/rotate/leaked", fields{"revoke": true})
	must(t, err)
	h.kill(t, leader)
	if n := h.forced(h.leaked); n != 1 {
		t.Errorf("there were %d forced refreshes, want one so far", n)
	}
	for _, node := range h.Nodes {
		if got := h.through(node).status(t, "leaked")["revocation"]; got != "pending" {
			t.Errorf("the revocation is %v, want it pending", got)
		}
		h.counted(t, node, "leaked", 1)
	}
}

func (h *highlyAvailable) completeRevocation(t *testing.T) {
	t.Helper()
	eventually(t, patience, "the revocation completes", func() bool { return h.status(t, "leaked")["revocation"] != "pending" })
	for _, node := range h.Nodes {
		timeOf(t, h.through(node).status(t, "leaked"), "revocation")
		h.counted(t, node, "leaked", 2)
	}
	if n := h.forced(h.leaked); n != 2 {
		for _, call := range h.Calls(h.leaked["appid"].(string)) {
			t.Logf("%s forced %t, issued %t", call.Time.Format(time.RFC3339Nano), call.Forced, call.Issued)
		}
		t.Errorf("the leaked token's account was refreshed by force %d times, want 2", n)
	}
	if n := h.forced(h.rotated); n != 1 {
		t.Errorf("the rotated account was refreshed by force %d times, want 1", n)
	}
	if _, errcode := h.Check(h.leakedToken); errcode == 0 {
		t.Error("the leaked token still lives")
	}
}

func (h *highlyAvailable) stepDown(t *testing.T) {
	t.Helper()
	leader := h.leader(t, nil)
	happened := time.Now()
	must(t, leader.Sys().StepDown())
	h.succeeded(t, leader, happened)
	pluginEnds(t, leader)
}

func (h *highlyAvailable) sealLeader(t *testing.T) {
	t.Helper()
	leader := h.leader(t, nil)
	happened := time.Now()
	must(t, leader.Sys().Seal())
	h.leader(t, leader)
	pluginEnds(t, leader)
	must(t, leader.Unseal(t.Context()))
	h.succeeded(t, leader, happened)
}

func (h *highlyAvailable) reload(t *testing.T) {
	t.Helper()
	leader := h.leader(t, nil)
	before := pluginsOf(t, leader)
	_, err := h.vault.Sys().ReloadPlugin(&api.ReloadPluginInput{Plugin: pluginName, Scope: "global"})
	must(t, err)
	eventually(t, patience, "the plugin runs in another process", func() bool {
		after := pluginsOf(t, leader)
		return len(after) > 0 && !slices.ContainsFunc(after, func(pid int) bool { return slices.Contains(before, pid) })
	})
	if seen := h.load.soFar(); len(seen.failures) > 0 {
		t.Errorf("Vault holds requests back while it reloads, and yet readers saw %s", seen)
	}
}

// upgrade brings the next version to one node after the other, and lets a new
// leader come up with it.
func (h *highlyAvailable) upgrade(t *testing.T) {
	t.Helper()
	next := "v99.0.0"
	built := buildPlugin(t, next)
	must(t, h.Install(built))
	must(t, h.vault.Register(t.Context(), built))
	h.runVersion(t, next, "global")
	h.intact(t)
	h.stepDown(t)
	if got := h.runningVersion(t); got != next {
		t.Errorf("version %s runs on the next leader, want %s", got, next)
	}
}
