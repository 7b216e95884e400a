package wechat

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// englishOnly are the pages without a Chinese twin: they are for work on the
// project.
var englishOnly = []string{"CHANGELOG.md", "CONTRIBUTING.md"}

// pages returns the paths of all documents.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/README*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			all = append(all, filepath.ToSlash(file))
		}
	}
	require.Contains(t, all, "README.md")
	require.Contains(t, all, "docs/reference.zh-CN.md")
	return all
}

// document is a page as the tests look at it.
type document struct {
	levels  []int           // of its headings, in their order
	anchors map[string]bool // what a link to a heading, or to a row of a table, is called
	prose   string          // the text without its blocks of code
	code    []string        // the lines of its blocks of code, a continued one joined
	shown   []string        // the blocks of code that show commands, with what these print
}

var (
	heading  = regexp.MustCompile(`^(#+) +(.+?) *$`)
	fence    = regexp.MustCompile("^ *```")
	aCommand = regexp.MustCompile(`(?m)^ *\$ `)
	link     = regexp.MustCompile(`\[[^][]*\]\(([^)\s]+)\)`)
	markup   = regexp.MustCompile(`\[([^][]*)\]\([^)]*\)`)
	anchor   = regexp.MustCompile(`<a id="([^"]+)"></a>`)
)

// readDocument reads the page at a path.
func readDocument(t *testing.T, file string) *document {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(file))
	require.NoError(t, err)
	p := &document{anchors: map[string]bool{}}
	var prose strings.Builder
	inCode, joined, block := false, "", ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case fence.MatchString(line):
			if inCode = !inCode; !inCode && aCommand.MatchString(block) {
				p.shown = append(p.shown, block)
			}
			block = ""
		case inCode:
			block += line + "\n"
			if before, continued := strings.CutSuffix(line, `\`); continued {
				joined += before
				continue
			}
			p.code = append(p.code, joined+line)
			joined = ""
		default:
			if m := heading.FindStringSubmatch(line); m != nil {
				p.levels = append(p.levels, len(m[1]))
				p.addAnchor(m[2])
			}
			for _, m := range anchor.FindAllStringSubmatch(line, -1) {
				require.False(t, p.anchors[m[1]], "%s: two places are called %s", file, m[1])
				p.anchors[m[1]] = true
			}
			prose.WriteString(line + "\n")
		}
	}
	require.False(t, inCode, "%s: a block of code has no end", file)
	p.prose = prose.String()
	return p
}

// addAnchor adds what GitHub makes of a heading: lower case, spaces as hyphens,
// without punctuation, and numbered where it is there already.
func (p *document) addAnchor(title string) {
	title = markup.ReplaceAllString(title, "$1")
	var b strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	anchor := b.String()
	for n := 1; p.anchors[anchor]; n++ {
		anchor = fmt.Sprintf("%s-%d", b.String(), n)
	}
	p.anchors[anchor] = true
}

func TestEveryLinkOfTheDocumentsLeadsSomewhere(t *testing.T) {
	links := 0
	for _, file := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(readDocument(t, file).prose, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			links++
			to := file
			if target != "" {
				to = path.Join(path.Dir(file), target)
			}
			_, err := os.Stat(filepath.FromSlash(to))
			if !assertLink(t, err == nil, file, m[1], "there is no such file") {
				continue
			}
			if anchor != "" {
				assertLink(t, readDocument(t, to).anchors[anchor], file, m[1], "there is no such heading")
			}
			if strings.HasSuffix(file, ".zh-CN.md") && strings.HasSuffix(to, ".md") && !strings.HasSuffix(to, ".zh-CN.md") {
				own := strings.TrimSuffix(file, ".zh-CN.md") + ".md"
				assertLink(t, to == own || slices.Contains(englishOnly, to), file, m[1], "the page has a Chinese twin")
			}
		}
	}
	require.NotZero(t, links)
}

func assertLink(t *testing.T, ok bool, file, link, why string) bool {
	t.Helper()
	if !ok {
		t.Errorf("%s: the link %s: %s", file, link, why)
	}
	return ok
}

func TestEveryPageHasItsChineseTwin(t *testing.T) {
	all := pages(t)
	for _, file := range all {
		if slices.Contains(englishOnly, file) || strings.HasSuffix(file, ".zh-CN.md") {
			continue
		}
		twin := strings.TrimSuffix(file, ".md") + ".zh-CN.md"
		if !slices.Contains(all, twin) {
			t.Errorf("%s has no twin %s", file, twin)
			continue
		}
		english, chinese := readDocument(t, file), readDocument(t, twin)
		require.Equal(t, english.levels, chinese.levels, "the headings of %s and of its twin", file)
		require.Equal(t, english.shown, chinese.shown, "the commands of %s and of its twin, and what they print", file)
		require.Contains(t, english.prose, "("+path.Base(twin)+")", "%s leads to its twin", file)
		require.Contains(t, chinese.prose, "("+path.Base(file)+")", "%s leads to its twin", twin)
	}
	for _, file := range all {
		if original, isTwin := strings.CutSuffix(file, ".zh-CN.md"); isTwin {
			require.Contains(t, all, original+".md", "%s is a translation of", file)
		}
	}
}

// shownCommand is a command of Vault's on a path of the engine, as the documents
// show it. The name ends at what no argument holds.
var shownCommand = regexp.MustCompile("\\bvault (read|write|list|delete)((?: +-[a-z][a-z-]*(?:=\\S+)?)*) +\"?wechat/([^\\s\"`|;)]+)\"?([^|;`]*)")

// assignment is a field that a command sets.
var assignment = regexp.MustCompile(`(?:^|\s)([a-z_]+)=`)

// commandFields are the fields that a request to a path takes, by the operation of
// the command line.
var commandFields = map[string]map[string][]string{
	"read": {
		"config": {}, "token": {}, "status": {}, "metrics": {},
		"sign": {"url"}, "ticket": {"type"},
	},
	"write": {
		"config":       {"appid", "secret", "base_url", "proxy_url", "ca_pem", "request_timeout", "sync_interval", "max_ttl", "verify"},
		"refresh":      {"rejected_token"},
		"rotate":       {"revoke"},
		"clear-quota":  {},
		"code2session": {"js_code", "include_session_key"},
		"oauth2":       {"code"},
		"sign":         {"url"},
	},
	"list":   {"config": {}, "token": {}, "status": {}},
	"delete": {"config": {}},
}

func TestEveryCommandOfTheDocumentsNamesPathsAndFieldsThatExist(t *testing.T) {
	seen := map[string]bool{}
	for _, file := range pages(t) {
		p := readDocument(t, file)
		for _, line := range append(p.code, strings.Split(p.prose, "\n")...) {
			for _, m := range shownCommand.FindAllStringSubmatch(line, -1) {
				operation, flags, rest := m[1], m[2], m[4]
				area, name, _ := strings.Cut(m[3], "/")
				fields, exists := commandFields[operation][area]
				if !exists {
					t.Errorf("%s: there is no %s of %s/: %s", file, operation, area, m[0])
					continue
				}
				seen[operation+" "+area] = true
				if area != "metrics" && operation != "list" && name == "" {
					t.Errorf("%s: no account is named: %s", file, m[0])
				}
				set := assignment.FindAllStringSubmatch(rest, -1)
				for _, field := range set {
					if !slices.Contains(fields, field[1]) {
						t.Errorf("%s: %s/ has no field %s: %s", file, area, field[1], m[0])
					}
				}
				// Vault's command line refuses a write that sets nothing.
				if operation == "write" && len(set) == 0 && !strings.Contains(flags, "-f") {
					t.Errorf("%s: a write without fields needs -force: %s", file, m[0])
				}
			}
		}
	}
	for _, operation := range []string{"write config", "read config", "list config", "delete config", "read token", "write refresh", "write rotate", "read status"} {
		require.True(t, seen[operation], "no page shows %s", operation)
	}
}

// testName is how the documents name a test.
var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]+)`")

func TestEveryTestThatTheDocumentsNameExists(t *testing.T) {
	var code strings.Builder
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			code.Write(text)
		}
	}
	named := 0
	for _, file := range pages(t) {
		for _, m := range testName.FindAllStringSubmatch(readDocument(t, file).prose, -1) {
			named++
			if !strings.Contains(code.String(), "\nfunc "+m[1]+"(") {
				t.Errorf("%s: there is no test %s", file, m[1])
			}
		}
	}
	require.Greater(t, named, 50, "docs/security.md names them")
}

// requirement is a line of go.mod that requires a module for what it is used for
// here, and not for another module's sake.
var requirement = regexp.MustCompile(`(?m)^(?:require |\t)(?:github\.com/)?(\S+) v\S+$`)

func TestTheDependenciesOfTheDocumentsAreThoseOfTheModule(t *testing.T) {
	module, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	var required, documented []string
	for _, m := range requirement.FindAllStringSubmatch(string(module), -1) {
		required = append(required, m[1])
	}
	_, table, found := strings.Cut(readDocument(t, "CONTRIBUTING.md").prose, "\n## Dependencies\n")
	require.True(t, found)
	for row := range strings.Lines(table) {
		if modules, _, isRow := strings.Cut(strings.TrimPrefix(row, "| "), " |"); isRow && strings.HasPrefix(modules, "`") {
			documented = append(documented, strings.Split(strings.Trim(modules, "`"), "`, `")...)
		}
	}
	require.ElementsMatch(t, required, documented)
}

func TestBothTablesOfCompatibilityOfTheDocumentsHaveTheSameRows(t *testing.T) {
	var rows [2][]string
	for i, page := range []string{"README.md", "README.zh-CN.md"} {
		_, table, found := strings.Cut(readDocument(t, page).prose, "\n<!-- make compat writes the rows from here -->\n")
		require.True(t, found, page)
		table, _, found = strings.Cut(table, "<!-- to here -->\n")
		require.True(t, found, page)
		rows[i] = strings.Split(strings.TrimSuffix(table, "\n"), "\n")[1:] // without the heading, which is in its language
	}
	require.Equal(t, rows[0], rows[1])
}

// downloadBehavior is how the documents have OpenBao treat an image that it cannot get.
var downloadBehavior = regexp.MustCompile("`plugin_download_behavior = \"([a-z]+)\"`")

// OpenBao's constants, in its command/server/config.go.
func TestTheDocumentsNameSettingsThatOpenBaoKnows(t *testing.T) {
	for _, page := range []string{"docs/release.md", "docs/release.zh-CN.md"} {
		named := downloadBehavior.FindAllStringSubmatch(readDocument(t, page).prose, -1)
		require.NotEmpty(t, named, page)
		for _, m := range named {
			require.Contains(t, []string{"fail", "continue"}, m[1], page)
		}
	}
}

// metricRow is a row of a table of metrics.
var metricRow = regexp.MustCompile("(?m)^\\| `(wechat_[a-z_]+)` \\|")

func TestTheReferencesTableOfMetricsIsWhatAMountTells(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		fleet(maxListed+1).store(t, m.storage, 2*time.Hour)
		m.reopen()
		for _, a := range m.keeper.doors {
			h := a.account.Load().holder
			st := *h.state.Load()
			st.Answered = time.Now()
			h.state.Store(&st)
		}
		told := metricNames(metricsText(t, m.backend, m.storage))
		for _, page := range []string{"docs/reference.md", "docs/reference.zh-CN.md"} {
			text, err := os.ReadFile(page)
			require.NoError(t, err)
			var documented []string
			for _, row := range metricRow.FindAllStringSubmatch(string(text), -1) {
				documented = append(documented, row[1])
			}
			require.ElementsMatch(t, told, documented, page)
		}
	})
}

// runbook returns the rows of the table below a heading of a page: the cells, by the
// name that the first of them holds.
func runbook(t *testing.T, page, title string) map[string][]string {
	t.Helper()
	_, after, found := strings.Cut(readDocument(t, page).prose, "\n## "+title+"\n")
	require.True(t, found, "%s has no heading %s", page, title)
	table, _, _ := strings.Cut(after, "\n## ")
	rows := map[string][]string{}
	for line := range strings.Lines(table) {
		first, rest, _ := strings.Cut(line, "` | ")
		name, isRow := strings.CutPrefix(first, "| `")
		if !isRow || name == "state" || name == "class" {
			continue
		}
		require.NotContains(t, rows, name, page)
		rows[name] = strings.Split(strings.TrimSuffix(strings.TrimSpace(rest), " |"), " | ")
		require.Len(t, rows[name], 4, "%s, %s: what it means, how to tell, what to do, what not to do", page, name)
		for _, cell := range rows[name] {
			require.NotEmpty(t, strings.TrimSpace(cell), "%s, %s", page, name)
		}
	}
	return rows
}

func TestTheRunbookTellsOfEveryStateAndClass(t *testing.T) {
	errcodesOf := map[string][]string{}
	for _, c := range upstream.Classes {
		errcodesOf[string(c)] = nil
	}
	for _, table := range append(slices.Collect(maps.Values(ownErrcodes)), errcodes) {
		for errcode, r := range table {
			c := string(r.Class)
			if text := strconv.Itoa(errcode); !slices.Contains(errcodesOf[c], text) {
				errcodesOf[c] = append(errcodesOf[c], text)
			}
		}
	}
	number := regexp.MustCompile(`-?\b\d+\b`)
	for page, titles := range map[string][2]string{
		"docs/troubleshooting.md":       {"By state", "By class"},
		"docs/troubleshooting.zh-CN.md": {"按状态", "按类别"},
	} {
		states := runbook(t, page, titles[0])
		require.ElementsMatch(t, []string{stateHealthy, stateDegraded, stateFailing, statePending}, slices.Collect(maps.Keys(states)), page)
		rows := runbook(t, page, titles[1])
		require.ElementsMatch(t, slices.Collect(maps.Keys(errcodesOf)), slices.Collect(maps.Keys(rows)), page)
		for c, cells := range rows {
			require.ElementsMatch(t, errcodesOf[c], number.FindAllString(cells[1], -1), "%s, %s: how to tell", page, c)
		}
	}
}

// errcodeRow is a row of a table of errcodes.
var errcodeRow = regexp.MustCompile(`(?m)^\| *(-?\d+) *\|(.*)\| *$`)

// section returns the text of a document from a heading to the next one.
func section(t *testing.T, text, title string) string {
	t.Helper()
	_, after, found := strings.Cut(text, "\n### "+title+"\n")
	require.True(t, found, "there is no heading %s", title)
	before, _, _ := strings.Cut(after, "\n#")
	return before
}

func TestTheReferencesTablesOfErrcodesAreTheCodes(t *testing.T) {
	titles := map[string][2]string{
		apiStableToken:  {"stable_token", "stable_token"},
		apiCode2Session: {"Errcodes of code2session", "code2session 的错误码"},
		apiOAuth2:       {"Errcodes of oauth2", "oauth2 的错误码"},
		apiTicket:       {"Errcodes of tickets", "ticket 的错误码"},
	}
	require.Len(t, titles, len(ownErrcodes)+1, "one table for each of WeChat's calls")
	for i, file := range []string{"docs/reference.md", "docs/reference.zh-CN.md"} {
		prose := readDocument(t, file).prose
		for call, title := range titles {
			t.Run(file+" "+call, func(t *testing.T) {
				rules := ownErrcodes[call]
				if call == apiStableToken {
					rules = errcodes
				}
				checkTableOfErrcodes(t, section(t, prose, title[i]), rules, i == 0)
			})
		}
	}
}

// checkTableOfErrcodes holds a table of the documents to the code's rules.
func checkTableOfErrcodes(t *testing.T, text string, rules map[int]rule, english bool) {
	t.Helper()
	rows := map[int][]string{}
	for _, m := range errcodeRow.FindAllStringSubmatch(text, -1) {
		errcode, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		require.NotContains(t, rows, errcode, "two rows of one errcode")
		var cells []string
		for cell := range strings.SplitSeq(m[2], "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows[errcode] = cells
	}
	require.Len(t, rows, len(rules), "one row for each errcode, and no other")
	to := "～"
	if english {
		to = " to "
	}
	for errcode, rule := range rules {
		cells := rows[errcode]
		require.Len(t, cells, 5, "errcode %d: class, status, wait, meaning, what to do", errcode)
		require.Equal(t, string(rule.Class), cells[0], "errcode %d", errcode)
		require.Equal(t, strconv.Itoa(rule.Status), cells[1], "errcode %d", errcode)
		require.Equal(t, waitText(rule.Backoff, to), cells[2], "errcode %d", errcode)
		if english {
			require.Equal(t, []string{rule.Meaning, rule.Advice}, cells[3:], "errcode %d", errcode)
		}
		require.NotEmpty(t, cells[3], "errcode %d", errcode)
		require.NotEmpty(t, cells[4], "errcode %d", errcode)
	}
}

// waitText is how the tables show a backoff: "1s to 1m" with the given word
// between, "1m" where it does not grow, and a dash where nothing waits.
func waitText(b backoff, to string) string {
	short := func(d time.Duration) string {
		switch {
		case d%time.Hour == 0:
			return fmt.Sprintf("%dh", d/time.Hour)
		case d%time.Minute == 0:
			return fmt.Sprintf("%dm", d/time.Minute)
		}
		return fmt.Sprintf("%ds", d/time.Second)
	}
	switch b.First {
	case 0:
		return "–"
	case b.Most:
		return short(b.First)
	}
	return short(b.First) + to + short(b.Most)
}
