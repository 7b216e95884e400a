//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// example returns the text of a file below examples/.
func example(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "examples", filepath.FromSlash(path)))
	must(t, err)
	return string(text)
}

// agent is a Vault Agent, with a directory in which it has all its files.
type agent struct {
	vault *vaulttest.Server
	role  string // the AppRole it logs in with
	dir   string
}

// newAgent prepares an Agent that logs in with an AppRole of the given name,
// which has the policy of the same name. A login lasts for a minute, so that a
// test of some minutes sees it replaced.
func newAgent(t *testing.T, v *vaulttest.Server, role string) *agent {
	t.Helper()
	a := &agent{vault: v, role: role, dir: t.TempDir()}
	path := "auth/approle/role/" + role
	_, err := v.Logical().Write(path, fields{"token_policies": role, "token_ttl": "1m", "token_max_ttl": "1m"})
	must(t, err)
	id, err := v.Logical().Read(path + "/role-id")
	must(t, err)
	secret, err := v.Logical().Write(path+"/secret-id", nil)
	must(t, err)
	v.Hide(secret.Data["secret_id"].(string))
	a.write(t, "role-id", id.Data["role_id"].(string), 0o600)
	a.write(t, "secret-id", secret.Data["secret_id"].(string), 0o600)
	return a
}

func (a *agent) file(name string) string { return filepath.Join(a.dir, name) }

func (a *agent) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(a.file(name), []byte(text), mode))
}

// start runs the Agent until the test ends, with an example configuration whose
// paths all lead to the Agent's directory.
func (a *agent) start(t *testing.T, config string) {
	t.Helper()
	a.write(t, "agent.hcl", strings.NewReplacer(
		"https://vault.example.com:8200", a.vault.Address(),
		"/etc/vault-agent/", a.dir+"/",
		"/run/vault-agent/", a.dir+"/",
		"/usr/local/bin/", a.dir+"/",
	).Replace(config), 0o600)
	log, err := os.Create(a.file("log"))
	must(t, err)
	defer log.Close()
	// The shell ends the Agent, and the Agent its application, when the test
	// closes the pipe, or when the tests end in whichever way.
	cmd := exec.Command("sh", "-c", `"$@" & agent=$!; read -r _; kill "$agent"; wait "$agent"`, "sh",
		subject.host.Path, "agent", "-config="+a.file("agent.hcl"))
	cmd.Env = []string{"HOME=" + a.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	pipe, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		pipe.Close()
		_ = cmd.Wait() // with the status of the Agent that was ended
		if t.Failed() {
			text, _ := os.ReadFile(a.file("log"))
			t.Logf("the log of the Agent for %s ends with\n%s", a.role, text[max(0, len(text)-4000):])
		}
	})
}

// rejection is a moment at which the platform did not accept what a consumer held.
type rejection struct {
	at      time.Time
	errcode int
}

// checker looks several times a second at the file in which a consumer has its
// token, and presents the token to the platform.
type checker struct {
	name, path string

	mu         sync.Mutex
	checks     int
	token      string
	rotations  int           // how often the file held another token
	superseded time.Time     // since when the platform has a newer token; zero if it has none
	behind     time.Duration // the longest time for which the file held a superseded token
	rejections []rejection
}

// interval is that of a checker.
const interval = 200 * time.Millisecond

// startChecker waits until there is a token in the file, and then checks until
// the test ends.
func startChecker(t *testing.T, e *engine, account fields, name, path string) *checker {
	t.Helper()
	c := &checker{name: name, path: path}
	eventually(t, patience, name+" has a token", func() bool {
		text, err := os.ReadFile(path)
		return err == nil && len(text) > 0
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			c.check(e, account)
			select {
			case <-stop:
				return
			case <-time.After(interval):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	return c
}

func (c *checker) check(e *engine, account fields) {
	newest := e.current(account)
	text, _ := os.ReadFile(c.path) // a file that cannot be read holds no good token
	token, now := string(text), time.Now()
	_, errcode := e.Check(token)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks++
	if token != c.token {
		if c.token != "" {
			c.rotations++
		}
		c.token, c.superseded = token, time.Time{}
	}
	switch {
	case token == newest:
		c.superseded = time.Time{}
	case c.superseded.IsZero():
		c.superseded = now
	default:
		c.behind = max(c.behind, now.Sub(c.superseded))
	}
	if errcode != 0 {
		c.rejections = append(c.rejections, rejection{now, errcode})
	}
}

// rotated returns how many rotations the consumer has survived.
func (c *checker) rotated() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rotations
}

// holds tells whether the consumer has this token.
func (c *checker) holds(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token == token
}

// requestsOf counts the requests of each AppRole in the server's audit file, those
// for the path and all.
func requestsOf(t *testing.T, v *vaulttest.Server, path string) (forPath, all map[string]int) {
	t.Helper()
	file, err := os.Open(v.AuditFile())
	must(t, err)
	defer file.Close()
	forPath, all = map[string]int{}, map[string]int{}
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF { // without its end the line is still being written
			return forPath, all
		}
		must(t, err)
		var entry struct {
			Type string
			Auth struct {
				Metadata struct {
					RoleName string `json:"role_name"`
				}
			}
			Request struct{ Path string }
		}
		must(t, json.Unmarshal(line, &entry))
		if role := entry.Auth.Metadata.RoleName; entry.Type == "request" && role != "" {
			all[role]++
			if entry.Request.Path == path {
				forPath[role]++
			}
		}
	}
}

// Two real Agents with the example configurations: one keeps a file, the other
// runs an application that has the token in its environment. Tokens are replaced
// every ten seconds and live for a minute. For minutes no application may hold a token
// that the platform does not accept, whatever happens, with one exception: a
// replacement by force kills the token at once, and the Agents learn of it when
// they read again, which is after max_ttl and a second at the latest. The
// application is started again two seconds after that.
func TestAgentsStayFresh(t *testing.T) {
	t.Parallel()
	const (
		maxTTL = 10 * time.Second
		reread = maxTTL + time.Second + 2*time.Second // the Agent's rules
		// What a read, a restart of the application and the checker's interval may
		// add on a busy machine.
		slack = 5 * time.Second
		spell = 12 * time.Second // for which the platform fails
	)
	v := ownVault(t)
	e := newPlatform(t, v)
	e.path = "wechat" // as in the examples
	e.mount(t)
	account := e.account(wechatsim.Account{Lifetime: 60 * time.Second, Overlap: 52 * time.Second})
	e.configure(t, "team-a/shop", account, fields{"max_ttl": maxTTL.String()})

	must(t, v.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	for _, role := range []string{"file", "supervisor"} {
		must(t, v.Sys().PutPolicy(role, example(t, "policies/application.hcl")))
	}
	began := time.Now()
	file, supervisor := newAgent(t, v, "file"), newAgent(t, v, "supervisor")
	file.start(t, example(t, "agent/file.hcl"))
	// The application shows which token it runs with.
	supervisor.write(t, "shop", `#!/bin/sh
cd "${0%/*}" && printf %s "$WECHAT_ACCESS_TOKEN" >held.new && mv held.new held && exec sleep 600
`, 0o700)
	supervisor.start(t, example(t, "agent/supervisor.hcl"))
	checkers := []*checker{
		startChecker(t, e, account, "file", file.file("wechat-token")),
		startChecker(t, e, account, "supervisor", supervisor.file("held")),
	}
	survived := func(rotations int) {
		t.Helper()
		eventually(t, 3*time.Minute, fmt.Sprintf("%d rotations", rotations), func() bool {
			return checkers[0].rotated() >= rotations && checkers[1].rotated() >= rotations
		})
	}

	survived(3)
	e.inject(account, wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
	failing := time.Now()
	eventually(t, patience, "the platform has failed for a while", func() bool { return time.Since(failing) > spell })
	e.ClearFaults()
	failures := 0
	for _, call := range e.Calls(account["appid"].(string)) {
		if call.Fault != "" {
			failures++
		}
	}
	if failures == 0 {
		t.Error("the platform was not called while it failed")
	}

	for rotations := range 3 {
		survived(6 + rotations)
		killPlugin(t, v)
	}

	survived(10)
	forced := time.Now()
	_, err := v.Logical().Write("wechat/rotate/team-a/shop", nil)
	must(t, err)
	after := e.current(account)
	gaps := map[string]time.Duration{}
	eventually(t, patience, "every consumer has a token that came after the forced one", func() bool {
		for _, c := range checkers {
			if _, done := gaps[c.name]; !done && (c.holds(after) || c.holds(e.current(account))) {
				gaps[c.name] = time.Since(forced)
			}
		}
		return len(gaps) == len(checkers)
	})
	survived(12)

	elapsed := time.Since(began)
	reads, all := requestsOf(t, v, "wechat/token/team-a/shop")
	for _, c := range checkers {
		c.mu.Lock()
		during := 0
		for _, r := range c.rejections {
			if r.at.After(forced) && r.at.Before(forced.Add(reread+slack)) {
				during++
				continue
			}
			t.Errorf("%s: after %s the platform refuses the token with %d", c.name, r.at.Sub(began), r.errcode)
		}
		t.Logf("%s: %d rotations in %s; %d checks, %d rejections but for the %d after rotate; a new token in the file %s after rotate, otherwise %s after it was issued at the latest; %d reads of the token among %d requests",
			c.name, c.rotations, elapsed.Round(time.Second), c.checks, len(c.rejections)-during, during,
			gaps[c.name].Round(interval/2), c.behind.Round(interval/2), reads[c.name], all[c.name])
		if c.behind > reread+slack {
			t.Errorf("%s was %s behind the platform, want at most %s", c.name, c.behind, reread+slack)
		}
		if c.checks < int(elapsed/interval)/4 {
			t.Errorf("%s was looked at only %d times", c.name, c.checks)
		}
		// A read for each token, and a few for each new login and for the plugin
		// that was killed.
		if n := reads[c.name]; n < c.rotations || n > int(elapsed/maxTTL)+15 {
			t.Errorf("%s read the token %d times in %s", c.name, n, elapsed)
		}
		if n := all[c.name] - reads[c.name]; n > 20 {
			t.Errorf("%s made %d requests beside its reads of the token", c.name, n)
		}
		c.mu.Unlock()
	}

	issued, failed := 0, 0
	for _, call := range e.Calls(account["appid"].(string)) {
		switch {
		case call.Issued:
			issued++
		case call.Fault != "":
			failed++
		}
	}
	calls := e.calls(account)
	t.Logf("the platform saw %d calls: %d issued a token, %d failed", calls, issued, failed)
	if calls > issued+failed+3 || failed > 8 || issued > int(elapsed/maxTTL)+3 {
		t.Error("these are too many calls")
	}
	if n := e.MaxInFlight(account["appid"].(string)); n != 1 {
		t.Errorf("%d calls were in flight at a time, want 1", n)
	}
}
