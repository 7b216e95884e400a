//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// The commands of the documents are run, in their order, by a shell, and have to
// end and to print as the page shows. The Chinese pages show the same commands,
// which another test holds.
//
// A command is a line that begins with "$ ", in a block of code; what follows is
// its output, up to the next command. Of an output each line's first word is
// compared, for tokens and times differ. "…" at a line's beginning stands for any
// lines.

// executed are the pages whose commands are run, each with what there has to be
// before. A block that begins with a command of notExecuted is passed over.
var executed = []struct {
	page   string
	before func(t *testing.T, d *documents)
}{
	{"README.md", nil}, // mounts the engine itself
	{"docs/install.md", func(t *testing.T, d *documents) {
		d.provide(t, "v0.2.0") // the page says that it was built and registered as v0.1.0 was
		must(t, d.vault.Sys().RegisterPluginWithContext(t.Context(), &api.RegisterPluginInput{
			Name: pluginName, Type: api.PluginTypeSecrets, Version: "v0.2.0",
			Command: pluginName + "_v0.2.0", SHA256: d.built["v0.2.0"].SHA256,
		}))
		d.provide(t, "v0.1.0")
	}},
	{"docs/concepts.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
	}},
	{"docs/migrate.md", func(t *testing.T, d *documents) { d.mount(t) }},
	{"docs/incidents.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
		d.account(t, "team-a/shop", "wx2222222222222222")
		d.ahead("vault read -field=revocation wechat/status/demo", func(*testing.T) {}, func(t *testing.T) {
			eventually(t, time.Minute, "the revocation is complete", func() bool {
				answer, err := d.vault.Logical().Read(d.path + "/status/demo")
				return err == nil && answer.Data["revocation"] != "pending"
			})
		})
	}},
	{"docs/troubleshooting.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.failing(t, "team-b/mall", "wx5555555555555555")
	}},
	{"docs/operate.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
		d.failing(t, "team-b/mall", "wx5555555555555555")
		d.Update("wx3333333333333333", func(a *wechatsim.Account) { a.Lifetime = 291 * time.Second })
		d.account(t, "mini", "wx3333333333333333")
		d.ahead("vault read wechat/token/mini", func(t *testing.T) {
			d.Inject(wechatsim.Fault{Kind: "errcode", AppID: "wx3333333333333333", Errcode: -1})
			eventually(t, patience, "the token is due", func() bool {
				answer, err := d.vault.Logical().Read(d.path + "/token/mini")
				return err == nil && len(answer.Warnings) > 0
			})
		})
	}},
	{"docs/reference.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
		d.codes("wx0123456789abcdef")
		d.account(t, "team-a/service", "wx2222222222222222")
		d.account(t, "team-a/shop", "wx5555555555555555")
		d.Update("wx3333333333333333", func(a *wechatsim.Account) { a.AllowedIPs = []string{"203.0.113.7"} })
		d.ahead("vault read -format=json wechat/status/mini | jq .data", func(t *testing.T) {
			d.Update("wx3333333333333333", func(a *wechatsim.Account) { a.AllowedIPs = nil })
			d.account(t, "mini", "wx3333333333333333")
			d.Inject(wechatsim.Fault{Kind: "errcode", AppID: "wx3333333333333333", Errcode: -1})
			eventually(t, patience, "a report asks WeChat, which is busy", func() bool {
				_, err := d.vault.Logical().Write(d.path+"/refresh/mini", nil)
				return err != nil
			})
		})
	}},
	{"docs/using-the-token.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.codes("wx2222222222222222")
		d.account(t, "team-a/shop", "wx2222222222222222")
	}},
}

// notExecuted begin the commands that are not run here: they build, or need what
// a test does not have.
var notExecuted = []string{"make ", "sha256sum ", "install ", "kubectl "}

// documentsSecret is the AppSecret of every account of the documents.
const documentsSecret = "c0ffee00c0ffee00c0ffee00c0ffee00"

// documents is what the documents are run on: a Vault with nothing mounted, the
// platform with their accounts, and a folder with the plugin's binary in bin/.
type documents struct {
	*engine
	dir   string
	env   []string                        // of the shell, besides what every page has
	hooks map[string][]func(t *testing.T) // called before a command: one for each time that it is shown
	built map[string]vaulttest.Plugin     // by version
}

func TestTheDocumentsCommandsDoAsTheyShow(t *testing.T) {
	d := &documents{engine: newPlatform(t, ownVault(t)), dir: t.TempDir(), built: map[string]vaulttest.Plugin{}}
	d.path = "wechat"
	d.hide(documentsSecret)
	must(t, os.MkdirAll(filepath.Join(d.dir, "bin"), 0o700))
	must(t, os.Symlink(mustAbs(t, "../examples"), filepath.Join(d.dir, "examples")))
	d.wrapVault(t)
	d.provide(t, "v0.1.0")
	for _, e := range executed {
		t.Run(e.page, func(t *testing.T) {
			for _, appid := range []string{"wx0123456789abcdef", "wx2222222222222222", "wx3333333333333333", "wx5555555555555555"} {
				d.SetAccount(appid, wechatsim.Account{Secret: documentsSecret, ForcedSpacing: time.Millisecond}) // the page before may have forced
			}
			d.hooks = map[string][]func(t *testing.T){}
			d.ClearFaults()
			d.env = nil
			if e.before != nil {
				e.before(t, d)
			}
			t.Cleanup(func() { must(t, d.vault.Sys().Unmount(d.path)) })
			d.execute(t, e.page)
		})
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	absolute, err := filepath.Abs(path)
	must(t, err)
	return absolute
}

// wrapVault puts a vault into the folder's path that takes the simulator for
// WeChat: a write of an AppSecret leads there.
func (d *documents) wrapVault(t *testing.T) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(d.dir, "path"), 0o700))
	script := fmt.Sprintf(`#!/bin/sh
case "$*" in
"write wechat/config/"*" proxy_url="*) set -- "$@" verify=false base_url=https://wechat.invalid ;; # nothing listens there
"write wechat/config/"*" secret=-") set -- "$@" base_url=%s ;;
esac
exec %s "$@"
`, d.url, subject.host.Path)
	must(t, os.WriteFile(filepath.Join(d.dir, "path", "vault"), []byte(script), 0o700))
}

// provide builds a version of the plugin, and puts it where the documents have
// it: in bin/, and in Vault's plugin directory.
func (d *documents) provide(t *testing.T, version string) {
	t.Helper()
	p, ok := d.built[version]
	if !ok {
		p = buildPlugin(t, version)
		must(t, d.vault.Install(p))
		d.built[version] = p
	}
	installed := filepath.Join(d.vault.PluginDir(), p.Command())
	for _, copied := range []string{
		filepath.Join(d.dir, "bin", pluginName),
		filepath.Join(d.vault.PluginDir(), pluginName+"_"+version),
	} {
		_ = os.Remove(copied)
		must(t, os.Link(installed, copied))
	}
}

// mount mounts the engine without a page's commands.
func (d *documents) mount(t *testing.T) {
	t.Helper()
	must(t, d.vault.Sys().Mount(d.path, &api.MountInput{Type: pluginName}))
}

// account writes an account of the documents.
func (d *documents) account(t *testing.T, name, appid string) {
	t.Helper()
	_, err := d.write(name, fields{"appid": appid, "secret": documentsSecret, "base_url": d.url})
	must(t, err)
}

// ahead has something done before a command: a function for each time that the
// page shows it.
func (d *documents) ahead(command string, do ...func(t *testing.T)) { d.hooks[command] = do }

// codes puts a user's codes of an account into the shell's environment.
func (d *documents) codes(appid string) {
	d.env = append(d.env,
		"JS_CODE="+d.hide(d.Mint(appid, wechatsim.Code{}).Code),
		"CODE="+d.hide(d.Mint(appid, wechatsim.Code{API: wechatsim.APIOAuth2}).Code))
}

// failing writes an account whose IP WeChat does not admit, and has it tried.
func (d *documents) failing(t *testing.T, name, appid string) {
	t.Helper()
	d.Update(appid, func(a *wechatsim.Account) { a.AllowedIPs = []string{"203.0.113.7"} })
	_, err := d.write(name, fields{"appid": appid, "secret": documentsSecret, "base_url": d.url, "verify": false})
	must(t, err)
	if _, err := d.readToken(name); err == nil {
		t.Errorf("%s has a token", name)
	}
}

// execute runs the commands of a page.
func (d *documents) execute(t *testing.T, page string) {
	t.Helper()
	sh := startShell(t, d)
	commands := 0
	for _, block := range codeBlocks(t, page) {
		for i, c := range block {
			if slices.ContainsFunc(notExecuted, func(prefix string) bool { return strings.HasPrefix(c.text, prefix) }) {
				if i == 0 && strings.HasPrefix(c.text, "make dev") {
					break // it prints commands itself
				}
				continue
			}
			commands++
			if hooks := d.hooks[c.text]; len(hooks) > 0 {
				d.hooks[c.text] = hooks[1:]
				hooks[0](t)
			}
			output, status := sh.run(t, c.text)
			if failed := len(c.output) > 0 && strings.HasPrefix(c.output[0], "Error"); failed != (status != 0) {
				t.Errorf("%s: the command ended with %d:\n$ %s\n%s", page, status, c.text, strings.Join(output, "\n"))
				continue
			}
			if got, want := firstWords(output), firstWords(c.output); !showsAs(got, want) {
				t.Errorf("%s: the command\n$ %s\nprints\n%s\nand the page shows\n%s", page, c.text, strings.Join(output, "\n"), strings.Join(c.output, "\n"))
			}
		}
	}
	if commands == 0 {
		t.Errorf("%s shows no command", page)
	}
}

// shown is a command that a page shows, with its output.
type shown struct {
	text   string
	output []string
}

// codeBlocks returns the commands of a page, block by block.
func codeBlocks(t *testing.T, page string) [][]shown {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
	must(t, err)
	var blocks [][]shown
	inBlock, continued := false, false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		last := len(blocks) - 1
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			if inBlock = !inBlock; inBlock {
				blocks = append(blocks, nil)
			}
		case !inBlock:
		case continued:
			c := &blocks[last][len(blocks[last])-1]
			c.text, continued = strings.CutSuffix(c.text+line, `\`)
		case isCommand:
			c := shown{}
			c.text, continued = strings.CutSuffix(command, `\`)
			blocks[last] = append(blocks[last], c)
		case len(blocks[last]) > 0:
			c := &blocks[last][len(blocks[last])-1]
			c.output = append(c.output, line)
		}
	}
	return blocks
}

// changing is what differs from run to run: times, and what is left of a life.
var changing = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\S+$|^\d+[smh]?$`)

// firstWords returns the first word of each line that is not empty. Of a warning
// or an error, which begins with a star, it is that of the first line: where the
// others begin is a matter of the terminal.
func firstWords(lines []string) []string {
	var words []string
	for _, line := range lines {
		all := strings.Fields(line)
		switch last := len(words) - 1; {
		case len(all) == 0:
			words = append(words, "")
		case last < 0 || words[last] != "*":
			words = append(words, changing.ReplaceAllString(all[0], "#"))
		}
	}
	return slices.DeleteFunc(words, func(word string) bool { return word == "" })
}

// showsAs reports whether lines are those of an output in which "…" may stand for
// any number of them.
func showsAs(got, want []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if want[0] == "…" {
		return showsAs(got, want[1:]) || len(got) > 0 && showsAs(got[1:], want)
	}
	return len(got) > 0 && got[0] == want[0] && showsAs(got[1:], want[1:])
}

// shell is one that runs for the length of a page, so that a variable set by one
// command is there for the next.
type shell struct {
	in      io.Writer
	reading *os.File
	out     *bufio.Reader
}

// shellMark ends each command's output.
const shellMark = "documents-test: ended with "

func startShell(t *testing.T, d *documents) *shell {
	t.Helper()
	cmd := exec.Command("sh") // which outlives the test's context until its cleanup
	cmd.Dir = d.dir
	cmd.Env = []string{
		"PATH=" + filepath.Join(d.dir, "path") + string(os.PathListSeparator) + os.Getenv("PATH"),
		"VAULT_ADDR=" + d.vault.Address(), "VAULT_TOKEN=" + d.vault.Token(), "VAULT_MAX_RETRIES=0",
		"TOKEN=" + random(),
		"HOME=" + t.TempDir(), "WECHAT_SECRET=" + documentsSecret,
	}
	cmd.Env = append(cmd.Env, d.env...)
	in, err := cmd.StdinPipe()
	must(t, err)
	reading, writing, err := os.Pipe()
	must(t, err)
	cmd.Stdout, cmd.Stderr = writing, writing
	must(t, cmd.Start())
	must(t, writing.Close())
	t.Cleanup(func() {
		must(t, in.Close())
		if err := cmd.Wait(); err != nil {
			t.Error("the shell:", err)
		}
		must(t, reading.Close())
	})
	return &shell{in: in, reading: reading, out: bufio.NewReader(reading)}
}

// run runs a command, and returns the lines that it prints and its status.
func (s *shell) run(t *testing.T, command string) ([]string, int) {
	t.Helper()
	if variable, typed := strings.CutPrefix(command, "read -rs "); typed {
		command = variable + "=" + documentsSecret
	}
	must(t, s.reading.SetReadDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprintf(s.in, "{ %s\n} </dev/null; status=$?; echo; echo \"%s$status\"\n", command, shellMark)
	must(t, err)
	var lines []string
	for {
		line, err := s.out.ReadString('\n')
		must(t, err)
		line = strings.TrimRight(line, "\n")
		if code, ended := strings.CutPrefix(line, shellMark); ended {
			status, err := strconv.Atoi(code)
			must(t, err)
			return lines, status
		}
		lines = append(lines, line)
	}
}
