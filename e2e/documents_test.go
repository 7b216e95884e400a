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

	wechat "github.com/vault-wechat/vault-plugin-secrets-wechat"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// The commands of the documents are run, in their order, by a shell, and have to
// end and to print as the page shows. The Chinese pages show the same commands,
// which another test holds.
//
// A command is a line that begins with "$ ", in a block of code; what follows is
// its output, up to the next command. Outputs are compared as a whole, but for what
// differs from run to run, which general names, and for "…": as a line it stands for
// any lines, within one for any text. The outputs are those of Vault 1.21: of an older
// one, and of OpenBao, only each line's first word is compared.

// The commands in the comments of examples are run as well, and have to succeed.

// executed are the pages whose commands are run, each with what there has to be
// before, but for the commands of notExecuted.
var executed = []executedPage{
	{"README.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.codes("wx0123456789abcdef")
	}},
	{"docs/install.md", func(_ *testing.T, d *documents) {
		d.ahead("OLD=$(vault read -field=running_plugin_version sys/mounts/wechat)", func(t *testing.T) {
			d.provide(t, upgraded) // the page says that it was built and registered as the first was
			must(t, d.vault.Sys().RegisterPluginWithContext(t.Context(), &api.RegisterPluginInput{
				Name: pluginName, Type: api.PluginTypeSecrets, Version: upgraded,
				Command: pluginName + "_" + upgraded, SHA256: d.built[upgraded].SHA256,
			}))
		})
	}},
	{"docs/concepts.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
	}},
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
		d.ahead(refreshAll, func(t *testing.T) {
			d.ForceOutside("wx0123456789abcdef") // which a restored snapshot knows nothing of
			d.ForceOutside("wx2222222222222222")
			d.rests(t, "demo")
			d.rests(t, "team-a/shop")
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
		d.account(t, "team-a/shop", "wx3333333333333333")
		d.ahead("vault read wechat/token/team-a/shop", func(t *testing.T) {
			d.Inject(wechatsim.Fault{Kind: "errcode", AppID: "wx3333333333333333", Errcode: -1})
			eventually(t, patience, "the token is due", func() bool {
				answer, err := d.vault.Logical().Read(d.path + "/token/team-a/shop")
				return err == nil && len(answer.Warnings) > 0
			})
		})
	}},
	{"docs/reference.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "demo", "wx0123456789abcdef")
		d.env = []string{"TOKEN=" + d.tokenBefore(t, "demo", "wx0123456789abcdef")}
		d.account(t, "team-a/service", "wx2222222222222222")
		d.account(t, "team-a/shop", "wx5555555555555555")
		d.Update("wx3333333333333333", func(a *wechatsim.Account) { a.AllowedIPs = []string{"203.0.113.7"} })
		d.ahead("vault list -detailed wechat/status", func(t *testing.T) {
			d.Update("wx3333333333333333", func(a *wechatsim.Account) { a.AllowedIPs, a.Lifetime = nil, 291*time.Second })
			d.account(t, "mini", "wx3333333333333333")
			d.Inject(wechatsim.Fault{Kind: "errcode", AppID: "wx3333333333333333", Errcode: -1, Times: 3})
			d.Inject(wechatsim.Fault{Kind: "hang", AppID: "wx3333333333333333"}) // a fourth failure takes seconds
			eventually(t, time.Minute, "the token is due, and WeChat is busy for the third time", func() bool {
				answer, err := d.vault.Logical().Read(d.path + "/status/mini")
				return err == nil && fmt.Sprint(answer.Data["consecutive_failures"]) == "3"
			})
		})
	}},
	{"docs/using-the-token.md", func(t *testing.T, d *documents) {
		d.mount(t)
		d.codes("wx0123456789abcdef")
		d.account(t, "team-a/shop", "wx0123456789abcdef")
	}},
	{"docs/release.md", func(t *testing.T, d *documents) { d.release(t, "v1.2.3") }},
	{"examples/policies/every-team.hcl", func(t *testing.T, d *documents) { d.mount(t) }},
	{"examples/policies/wrapped.hcl", func(t *testing.T, d *documents) {
		d.mount(t)
		d.account(t, "team-a/shop", "wx0123456789abcdef")
	}},
	{"examples/terraform/main.tf", func(t *testing.T, d *documents) { d.mount(t) }},
}

// upgraded is the version to which docs/install.md upgrades.
const upgraded = "v0.3.0-dev"

// refreshAll is the command with which docs/incidents.md has all accounts refreshed.
const refreshAll = `for name in $(curl -s -H "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/wechat/status?list=true&recursive=true" | jq -r '.data.keys[]'); do vault write -f "wechat/refresh/$name"; done`

// notExecuted are the commands that are not run here, by how they begin, and why.
// No other command of a document is left out.
var notExecuted = []leftOut{
	{"make dev", "it runs until Ctrl-C, and prints the commands of its block itself: TestMakeDevDoesAsTheREADMEShows"},
	{"make build", "the test builds both versions itself, and puts them where the command does"},
	{"install -m 0755 bin/", "it writes to /etc; the test puts the program into the Vault's own plugin directory"},
	{"make bench", "it takes minutes, and nothing else may run beside it"},
	{"go test -run '^$' -bench", "what it prints is this machine's"},
	{"docker ", "it needs a Docker daemon"},
	{"vault plugin register -oci_image=", "it needs the image in a Docker daemon, and its ID"},
	{"vault secrets enable -path=wechat -plugin-version=v1.2.3", "it needs gVisor's runtime in a Docker daemon"},
	{"vault agent -config=/etc/", "TestAgentsStayFresh runs both Agents"},
	{"kubectl ", "it needs a cluster of Kubernetes"},
	{"promtool ", "TestEveryAlertIsTestedAndInTheRunbook runs it"},
	{"terraform apply", "it needs Terraform, with its provider: TestTerraformExampleConfiguresAnAccount does what it has done"},
}

type executedPage struct {
	page   string
	before func(t *testing.T, d *documents)
}

type leftOut struct{ begins, why string }

func (l leftOut) is(command string) bool { return strings.HasPrefix(command, l.begins) }

// toRun returns those of a block's commands that are run.
func toRun(block []shown) []shown {
	if len(block) > 0 && strings.HasPrefix(block[0].text, "make dev") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(block), func(c shown) bool {
		return slices.ContainsFunc(notExecuted, func(l leftOut) bool { return l.is(c.text) })
	})
}

// neededPrograms are those of the documents' commands that not every machine has.
var neededPrograms = []string{"curl", "jq", "gpg"}

// documentsSecret is the AppSecret of every account of the documents.
const documentsSecret = "c0ffee00c0ffee00c0ffee00c0ffee00"

// documents is what the documents are run on: a Vault with nothing mounted, the
// platform with their accounts, and a folder with the plugin's binary in bin/.
type documents struct {
	*engine
	dir    string
	home   string                          // of the shell
	env    []string                        // of the shell, besides what every page has
	cd     string                          // where the shell is to go before its next command; "" to stay
	hooks  map[string][]func(t *testing.T) // called before a command: one for each time that it is shown
	built  map[string]vaulttest.Plugin     // by version
	tokens map[string]string               // by the policy that they have
}

func TestTheDocumentsCommandsDoAsTheyShow(t *testing.T) {
	d := &documents{
		engine: newPlatform(t, ownVault(t)), dir: t.TempDir(),
		built: map[string]vaulttest.Plugin{subject.plugin.Version: subject.plugin}, tokens: map[string]string{},
	}
	d.path = "wechat"
	d.hide(documentsSecret)
	must(t, os.MkdirAll(filepath.Join(d.dir, "bin"), 0o700))
	must(t, os.Symlink(mustAbs(t, "../examples"), filepath.Join(d.dir, "examples")))
	d.wrapVault(t)
	for _, e := range executed {
		t.Run(e.page, func(t *testing.T) {
			for _, appid := range []string{"wx0123456789abcdef", "wx2222222222222222", "wx3333333333333333", anyAppID, "wx5555555555555555"} {
				d.SetAccount(appid, wechatsim.Account{Secret: documentsSecret, ForcedSpacing: time.Millisecond}) // the page before may have forced
			}
			for _, program := range neededPrograms {
				if uses(t, e.page, program) && !installed(t, "the commands of "+e.page, program) {
					return
				}
			}
			must(t, d.vault.Register(t.Context(), subject.plugin)) // the page before may have ended that
			d.provide(t, wechat.Version)                           // as a build has it that names no other
			d.hooks = map[string][]func(t *testing.T){}
			d.ClearFaults()
			d.home, d.env, d.cd = t.TempDir(), nil, ""
			e.before(t, d)
			t.Cleanup(func() { must(t, d.vault.Sys().Unmount(d.path)) })
			d.execute(t, e.page)
		})
	}
}

func TestNoCommandOfTheDocumentsIsLeftOutWithoutAReason(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../examples/*/*", "../examples/*/*/*"} {
		pages, err := filepath.Glob(pattern)
		must(t, err)
		for _, page := range pages {
			page = filepath.ToSlash(strings.TrimPrefix(page, ".."+string(filepath.Separator)))
			if info, err := os.Stat(filepath.Join("..", page)); err != nil || info.IsDir() || strings.HasSuffix(page, ".zh-CN.md") {
				continue // another test holds that its blocks are those of the English page
			}
			runs := slices.ContainsFunc(executed, func(e executedPage) bool { return e.page == page })
			for _, block := range codeBlocks(t, page) {
				for _, c := range block {
					for _, left := range notExecuted {
						used[left.begins] = used[left.begins] || left.is(c.text)
					}
				}
				for _, c := range toRun(block) {
					if !runs {
						t.Errorf("%s: nothing runs the command\n$ %s", page, c.text)
					}
				}
			}
		}
	}
	for _, left := range notExecuted {
		if !used[left.begins] || left.why == "" {
			t.Errorf("no document shows a command that begins with %q, or nothing says why it is not run", left.begins)
		}
	}
}

// uses reports whether a command of a page calls a program.
func uses(t *testing.T, page, program string) bool {
	t.Helper()
	called := regexp.MustCompile(`(^|[|(;] *)` + program + ` `)
	for _, block := range codeBlocks(t, page) {
		if slices.ContainsFunc(block, func(c shown) bool { return called.MatchString(c.text) }) {
			return true
		}
	}
	return false
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

// rests waits until WeChat was not asked for an account's token for so long that a
// report asks again: ten seconds.
func (d *documents) rests(t *testing.T, name string) {
	t.Helper()
	eventually(t, time.Minute, "a report of "+name+" asks WeChat", func() bool {
		answer, err := d.vault.Logical().Read(d.path + "/status/" + name)
		if err != nil {
			return false
		}
		last, err := time.Parse(time.RFC3339, answer.Data["last_success_time"].(string))
		return err == nil && time.Since(last) > 11*time.Second // last is cut to a second
	})
}

// tokenBefore has an account's token replaced from outside, which the engine learns
// of, and returns the one that it handed out before.
func (d *documents) tokenBefore(t *testing.T, name, appid string) string {
	t.Helper()
	before := accessToken(d.token(t, name))
	d.ForceOutside(appid)
	d.account(t, name, appid)
	return before
}

// release makes a release of the last commit for one platform, in a clone that has
// its tag, and signs it. The shell begins where two of its files were downloaded, and
// builds the release again in the clone.
func (d *documents) release(t *testing.T, version string) {
	t.Helper()
	folder := t.TempDir()
	clone, published, downloaded := filepath.Join(folder, "clone"), filepath.Join(folder, "published"), filepath.Join(folder, "downloaded")
	gnupg, err := os.MkdirTemp("", "gnupg") //nolint:usetesting // its sockets need a short path
	must(t, err)
	d.env = []string{
		"GNUPGHOME=" + gnupg, "PLATFORMS=linux/amd64", "IMAGE=registry.example.com/" + pluginName, "PUBLISHED=" + published,
	}
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GOCACHE", "GOMODCACHE", "GOTOOLCHAIN"} {
		value, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		must(t, err)
		d.env = append(d.env, name+"="+strings.TrimSpace(string(value)))
	}
	run := func(command string) {
		t.Helper()
		cmd := exec.Command("sh", "-euc", command) // which outlives the test's context in its cleanup
		cmd.Env = append(os.Environ(), append(d.env, "CLONE="+clone, "DOWNLOADED="+downloaded, "VERSION="+version)...)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
	}
	t.Cleanup(func() {
		run(`gpgconf --kill all`)
		must(t, os.RemoveAll(gnupg))
	})
	run(`gpg --batch --quiet --passphrase '' --quick-generate-key 'Publisher <publisher@example.com>' default default never
git clone --quiet "$(git rev-parse --show-toplevel)" "$CLONE"
cd "$CLONE"
git tag --force "$VERSION"
SIGN_KEY=gpg:publisher@example.com scripts/dist.sh "$VERSION" "$IMAGE"
mv dist "$PUBLISHED"
mkdir "$DOWNLOADED"
cp "$PUBLISHED"/SHA256SUMS* "$PUBLISHED"/*_linux_amd64.tar.gz "$DOWNLOADED"`)
	d.cd = downloaded
	d.ahead("git checkout "+version, func(*testing.T) { d.cd = clone })
}

// execute runs the commands of a page: those of a runbook with the rights of their
// roles, all others with root's.
func (d *documents) execute(t *testing.T, page string) {
	t.Helper()
	blocks := codeBlocks
	if slices.Contains(runbooks, page) {
		blocks = pageBlocks
	}
	sh := startShell(t, d)
	commands := 0
	for _, block := range blocks(t, page) {
		for _, c := range toRun(block) {
			commands++
			if d.onlyChecked(t, c) {
				continue
			}
			if hooks := d.hooks[c.text]; len(hooks) > 0 {
				d.hooks[c.text] = hooks[1:]
				hooks[0](t)
			}
			if d.cd != "" {
				if output, status := sh.run(t, "cd '"+d.cd+"'"); status != 0 {
					t.Fatal(output)
				}
				d.cd = ""
			}
			_, _ = sh.run(t, "VAULT_TOKEN="+d.tokenOf(t, c.role))
			command, done := d.filledIn(t, c.text)
			output, status := sh.run(t, command)
			done()
			if failed := len(c.output) > 0 && strings.HasPrefix(c.output[0], "Error"); failed != (status != 0) {
				t.Errorf("%s: the command of %q ended with %d:\n$ %s\n%s", page, c.role, status, c.text, strings.Join(output, "\n"))
				continue
			}
			if c.inline {
				continue
			}
			for i := range output {
				output[i] = strings.ReplaceAll(output[i], d.url, "https://api.weixin.qq.com")
			}
			compared := general
			if !subject.host.IsVault(1, 21) {
				compared = firstWords // the rest is worded by the server's own command line
			}
			if !showsAs(compared(output), compared(c.output)) {
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
	role   string // whose command it is, by the name of the role's policy: in a runbook
	inline bool   // in running text, or in a comment, without its output
}

// codeBlocks returns the commands of a page, block by block: of an example those of its
// comments.
func codeBlocks(t *testing.T, page string) [][]shown {
	t.Helper()
	if !strings.HasSuffix(page, ".md") {
		return [][]shown{exampleCommands(t, page)}
	}
	blocks := slices.DeleteFunc(pageBlocks(t, page), func(block []shown) bool { return len(block) > 0 && block[0].inline })
	for _, block := range blocks {
		for i := range block {
			block[i].role = ""
		}
	}
	return blocks
}

// pageBlocks returns the commands of a page, block by block, each with its role. Those in
// a line of running text are a block.
func pageBlocks(t *testing.T, page string) [][]shown {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
	must(t, err)
	var blocks [][]shown
	names := naming{policies: policiesOf(t, page)}
	inBlock, continued := false, false
	for line := range strings.Lines(string(text)) {
		prose := strings.TrimRight(line, "\n")
		line = strings.TrimSpace(line)
		last := len(blocks) - 1
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			if inBlock = !inBlock; inBlock {
				blocks = append(blocks, nil)
			}
		case !inBlock:
			if commands := names.read(prose); len(commands) > 0 {
				blocks = append(blocks, commands)
			}
		case continued:
			c := &blocks[last][len(blocks[last])-1]
			c.text, continued = strings.CutSuffix(c.text+line, `\`)
		case isCommand:
			c := shown{role: names.current()}
			c.text, continued = strings.CutSuffix(command, `\`)
			blocks[last] = append(blocks[last], c)
		case len(blocks[last]) > 0:
			c := &blocks[last][len(blocks[last])-1]
			c.output = append(c.output, line)
		}
	}
	return blocks
}

// What differs from run to run: times, what is left of a life, this machine's ports,
// and random values.
var (
	aTime      = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z|\b1\d{9}\b`)
	aTTL       = regexp.MustCompile(`\bttl (\d+[ms])+`)
	aPort      = regexp.MustCompile(`\b127\.0\.0\.1:\d+`)
	shortened  = regexp.MustCompile(`[\w-]{12}…`) // as the documents show tokens
	aLongWord  = regexp.MustCompile(`[\w-]{20,}`)
	someLetter = regexp.MustCompile(`[g-z]`)
	aCapital   = regexp.MustCompile(`[A-Z]`)
)

// general returns the lines of an output that are not empty, without what differs
// from run to run, and without the widths of columns. A warning or an error, which
// begins with a star, is one line: where its others begin is a matter of the terminal.
func general(lines []string) []string {
	var all []string
	inStar := false
	for _, line := range lines {
		line = strings.Join(strings.Fields(line), " ")
		switch {
		case line == "":
			inStar = false
		case inStar && line[0] != '*':
			all[len(all)-1] += " " + line
		default:
			inStar = line[0] == '*'
			all = append(all, line)
		}
	}
	for i, line := range all {
		line = aTime.ReplaceAllString(line, "<time>")
		line = aTTL.ReplaceAllString(line, "ttl <duration>")
		line = aPort.ReplaceAllString(line, "<address>")
		line = strings.ReplaceAll(line, "127.0.0.1", "203.0.113.7") // the caller, as WeChat sees it
		line = shortened.ReplaceAllString(line, "<value>")
		all[i] = aLongWord.ReplaceAllStringFunc(line, func(word string) string {
			if someLetter.MatchString(word) && !aCapital.MatchString(word) {
				return word // a name, and not a token or a sum
			}
			return "<value>"
		})
	}
	return all
}

// firstWords returns the first word of each line of general.
func firstWords(lines []string) []string {
	words := general(lines)
	for i, line := range words {
		words[i], _, _ = strings.Cut(line, " ")
	}
	return words
}

// showsAs reports whether lines are those of an output in which a line "…" may stand
// for any number of them, and "…" within one for any text.
func showsAs(got, want []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if want[0] == "…" {
		return showsAs(got, want[1:]) || len(got) > 0 && showsAs(got[1:], want)
	}
	if len(got) == 0 {
		return false
	}
	line := "^" + strings.ReplaceAll(regexp.QuoteMeta(want[0]), "…", ".*") + "$"
	return regexp.MustCompile(line).MatchString(got[0]) && showsAs(got[1:], want[1:])
}

func TestAnOutputIsComparedButForWhatDiffersFromRunToRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, page, printed string
		same                bool
	}{
		{"the same", "type    wx_card", "type    wx_card", true},
		{"another width of a column", "Key    Value\ntype    wx_card", "Key        Value\ntype        wx_card", true},
		{"less of a life", "ttl    4m", "ttl    3m59s", true},
		{"another period", "rotation_period    2h", "rotation_period    1h55m10s", false},
		{"another caller", "caller's IP 203.0.113.7", "caller's IP 127.0.0.1", true},
		{"another time", "expire_time 2026-11-22T13:18:26Z", "expire_time 2027-01-02T03:04:05.678Z", true},
		{"no time", "expire_time 2026-11-22T13:18:26Z", "expire_time <nil>", false},
		{"another number", "rotations_remaining    18", "rotations_remaining    19", false},
		{"another answer", "changed true", "changed false", false},
		{"a token", "access_token mQv8G0rzMZLq…", "access_token 65_abcDEF0123456789-_abcdefgh", true},
		{"no token", "access_token mQv8G0rzMZLq…", "access_token <nil>", false},
		{"a sum", "49c856864803a09094444c8d4fb00a2be5372275  a", "0000000000000000000000000000000000000000  a", true},
		{"another name", "Registered plugin: vault-plugin-secrets-wechat", "Registered plugin: vault-plugin-secrets-webchat", false},
		{"another port", "URL: PUT http://127.0.0.1:8200/v1/a", "URL: PUT http://127.0.0.1:1/v1/a", true},
		{"another path", "URL: PUT http://127.0.0.1:8200/v1/a", "URL: PUT http://127.0.0.1:8200/v1/b", false},
		{"a warning that breaks elsewhere", "  * They share\n  a token.\n\nKey", "* They\nshare a token.\n\nKey", true},
		{"another warning", "  * They share\n  a token.", "  * They share\n  a ticket.", false},
		{"a line too many", "a", "a\nb", false},
		{"a line too few", "a\nb", "a", false},
		{"any lines", "…\nb", "a\na\nb", true},
		{"not any lines", "…\nb", "a\na\nc", false},
		{"any text", "from \"…\" [full]", "from \"a b\" [full]", true},
	} {
		if got := showsAs(general(strings.Split(c.printed, "\n")), general(strings.Split(c.page, "\n"))); got != c.same {
			t.Errorf("%s: the page shows\n%s\nand a run that prints\n%s\nshows the same: %v", c.name, c.page, c.printed, got)
		}
	}
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
		"HOME=" + d.home, "WECHAT_SECRET=" + documentsSecret,
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
