//go:build e2e

package e2e

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// A runbook is a page whose commands are for roles that it names, in bold, by the names
// of the table of policies in docs/using-the-token.md. A command is for the role that is
// named last before it, in its own list item or row of a table; else in a paragraph of its
// section; else first in the page's introduction.
//
// TestTheDocumentsCommandsDoAsTheyShow runs the commands of a runbook with a token
// that has the role's policy and no other. That includes the commands in running text.
var runbooks = []string{"docs/incidents.md", "docs/troubleshooting.md", "docs/operate.md", "docs/install.md"}

// checkedOnly are the commands of the runbooks that would disturb those after them.
// They are not run: the role's policy has to allow them.
var checkedOnly = map[string]struct {
	path  string
	needs []string
}{
	"vault operator step-down": {"sys/step-down", []string{"update", "sudo"}},
	// TestAPinIsMovedInPlaceOfATune runs these.
	"vault read sys/plugins/pins/secret/vault-plugin-secrets-wechat":                     {aPin, []string{"read"}},
	`vault write sys/plugins/pins/secret/vault-plugin-secrets-wechat version="$VERSION"`: {aPin, []string{"create", "update"}},
}

// aPin is the path at which the plugin is held at a version.
const aPin = "sys/plugins/pins/secret/" + pluginName

// The account that "<name>" stands for in a command.
const (
	anyName  = "any/account"
	anyAppID = "wx4444444444444444"
)

// placeholders are what a reader replaces in a command, in either language.
var placeholders = strings.NewReplacer("<名称>", "<name>", "<版本>", "<version>")

// aPolicy is a row of the table of policies.
var aPolicy = regexp.MustCompile(`(?m)^\| ([^|]+) \| [^|]+ \| \[([a-z-]+)\.hcl\]`)

// policiesOf returns the roles that pages in the language of a page may name, with the
// names of their policies.
func policiesOf(t *testing.T, page string) map[string]string {
	t.Helper()
	table := "../docs/using-the-token.md"
	if strings.HasSuffix(page, ".zh-CN.md") {
		table = "../docs/using-the-token.zh-CN.md"
	}
	text, err := os.ReadFile(table)
	must(t, err)
	policies := map[string]string{}
	for _, row := range aPolicy.FindAllStringSubmatch(string(text), -1) {
		policies[strings.ToLower(row[1])] = row[2]
	}
	return policies
}

// naming tells for which role a command is, while a page is read from its beginning.
type naming struct {
	policies            map[string]string
	page, section, item string // the policy of the role that each names
	began               bool   // the first section has begun
}

// current returns the policy of the role that the next command is for.
func (n *naming) current() string { return cmp.Or(n.item, n.section, n.page) }

var (
	itemOrRow  = regexp.MustCompile(`^(?:[-*] |\||\d+\. )`)
	boldOrCode = regexp.MustCompile("\\*\\*([^*]+)\\*\\*|`([^`]+)`")
	ofVault    = regexp.MustCompile(`\bvault [a-z]+ |\$VAULT_TOKEN`)
)

// read goes over a line of running text, and returns the commands in it.
func (n *naming) read(line string) []shown {
	indented := line != strings.TrimLeft(line, " ")
	inItem := itemOrRow.MatchString(line)
	switch {
	case strings.HasPrefix(line, "## "), strings.HasPrefix(line, "### "):
		n.section, n.item, n.began = "", "", true
	case line != "" && !indented:
		n.item = ""
	}
	var commands []shown
	for _, m := range boldOrCode.FindAllStringSubmatch(line, -1) {
		policy, role := n.policies[strings.ToLower(m[1])]
		switch {
		case m[2] != "" && ofVault.MatchString(m[2]):
			commands = append(commands, shown{text: placeholders.Replace(m[2]), role: n.current(), inline: true})
		case !role:
		case inItem || indented:
			n.item = policy
		case n.began:
			n.section = policy
		case n.page == "":
			n.page = policy
		}
	}
	return commands
}

func TestEveryCommandOfARunbookIsForARoleThatThePageNames(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, page := range runbooks {
		var steps [2][]string
		for i, language := range []string{page, strings.TrimSuffix(page, ".md") + ".zh-CN.md"} {
			for _, block := range pageBlocks(t, language) {
				for _, c := range block {
					if !ofVault.MatchString(c.text) {
						continue // an assignment, a copy: nothing that Vault allows or denies
					}
					if c.role == "" {
						t.Errorf("%s does not say whose command this is:\n%s", language, c.text)
					}
					seen[c.text] = true
					steps[i] = append(steps[i], c.role+": "+c.text)
				}
			}
		}
		if len(steps[0]) == 0 || !slices.Equal(steps[0], steps[1]) {
			t.Errorf("%s has the steps\n%s\nand its twin\n%s", page, strings.Join(steps[0], "\n"), strings.Join(steps[1], "\n"))
		}
	}
	for command := range checkedOnly {
		if !seen[command] {
			t.Errorf("no runbook has the command %s", command)
		}
	}
}

func TestARoleIsNamedForItsItemItsSectionOrThePage(t *testing.T) {
	t.Parallel()
	page := strings.Split("For **on-call**, or the **operator**.\n"+
		"`vault read a`\n"+
		"## First\n"+
		"- `vault read b`\n"+
		"- The **Operator**: `vault read c`, then **on-call** `vault read d`.\n"+
		"  `vault read e`\n"+
		"- `vault read f`\n"+
		"**Application**, and **Note**: `vault read g`\n"+
		"| **operator** | `vault read h` |\n"+
		"| `vault read i` |\n"+
		"## Second\n"+
		"`vault read j`, and `vault` or `verify=true` are no commands.", "\n")
	n := &naming{policies: policiesOf(t, "docs/incidents.md")}
	var got []string
	for _, line := range page {
		for _, c := range n.read(line) {
			got = append(got, strings.TrimPrefix(c.text, "vault read ")+" "+c.role)
		}
	}
	want := []string{
		"a on-call", "b on-call", "c operator", "d on-call", "e on-call", "f on-call",
		"g application", "h operator", "i application", "j on-call",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the commands are for\n%v, want\n%v", got, want)
	}
}

// tokenOf returns a token with an example policy and no other; "" is root's.
func (d *documents) tokenOf(t *testing.T, policy string) string {
	t.Helper()
	if policy == "" {
		return d.vault.Token()
	}
	if token, there := d.tokens[policy]; there {
		return token
	}
	must(t, d.vault.Sys().PutPolicy(policy, example(t, "policies/"+policy+".hcl")))
	login, err := d.vault.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{policy}, NoDefaultPolicy: true})
	must(t, err)
	d.tokens[policy] = d.hide(login.Auth.ClientToken)
	return d.tokens[policy]
}

// filledIn returns a command with what a reader puts in the place of its placeholders. The
// account that it names is there until done is called.
func (d *documents) filledIn(t *testing.T, command string) (filled string, done func()) {
	t.Helper()
	done = func() {}
	if strings.Contains(command, "<name>") {
		d.account(t, anyName, anyAppID)
		done = func() {
			_, err := d.vault.Logical().Delete(d.path + "/config/" + anyName)
			must(t, err)
		}
	}
	return strings.NewReplacer("<name>", anyName, "<version>", subject.plugin.Version).Replace(command), done
}

// onlyChecked checks that the policy of a command's role lets it be run, if the command is
// one that is only checked, and reports whether it is.
func (d *documents) onlyChecked(t *testing.T, c shown) bool {
	t.Helper()
	check, only := checkedOnly[c.text]
	if !only {
		return false
	}
	has, err := d.vault.Sys().Capabilities(d.tokenOf(t, c.role), check.path)
	must(t, err)
	for _, capability := range check.needs {
		if !slices.Contains(has, capability) {
			t.Errorf("%s may not %s %s, which this takes:\n%s", c.role, capability, check.path, c.text)
		}
	}
	return true
}

// commented matches a line of an example's comment, and what is indented in it: as
// Markdown has it, a command.
var commented = regexp.MustCompile(`^ *(?:#|//|\*)(?: {5,}(\S.*)| (.*))?$`)

// aProgram is how a command begins that the examples' readers may type.
var aProgram = regexp.MustCompile(`\b(?:vault (?:agent|auth|delete|list|plugin|policy|read|secrets|token|write)|terraform (?:apply|init|plan)|kubectl [a-z]+|promtool [a-z]+) `)

// exampleCommands returns the commands in the comments of an example.
func exampleCommands(t *testing.T, file string) []shown {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(file)))
	must(t, err)
	var commands []shown
	for line := range strings.Lines(string(text)) {
		m := commented.FindStringSubmatch(strings.TrimRight(line, "\n"))
		switch {
		case m == nil:
		case aProgram.MatchString(m[1] + " "):
			commands = append(commands, shown{text: m[1], inline: true})
		case aProgram.MatchString(m[2] + " "):
			t.Errorf("%s: a command in a comment is on a line of its own, indented by five blanks: %s", file, line)
		}
	}
	return commands
}
