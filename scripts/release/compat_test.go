package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The READMEs of a clone before make compat has run for the first time.
const (
	englishTable = "# English\n\n<!-- make compat writes the rows from here -->\n| server | date | passed | skipped | failed |\n| --- | --- | ---: | ---: | ---: |\n<!-- to here -->\n\n| Vault 1.16.3 | stays |\n"
	chineseTable = "# 中文\n\n<!-- make compat writes the rows from here -->\n| 服务端 | 日期 | 通过 | 跳过 | 失败 |\n| --- | --- | ---: | ---: | ---: |\n<!-- to here -->\n"
)

// newCompat is a clone in which scripts/compat.sh finds the servers vault-1.16,
// vault-1.20 and bao, and in which `go test` prints and ends as TESTS and STATUS say.
func newCompat(t *testing.T) clone {
	t.Helper()
	c := newClone(t, "compat.sh")
	scripts := filepath.Join(c.folder, "scripts")
	script(t, scripts, "vault.sh", `printf '%s\n' "$VAULT_BIN"`)
	script(t, scripts, "pinned.sh", `printf '%s\n' "$0.$1"`)
	script(t, scripts, "pinned.sh.vault-1.16", `echo "Vault v1.16.3 ('abc'), built 2024-05-31T13:03:33Z"`)
	script(t, scripts, "pinned.sh.vault-1.20", `echo "Vault v1.20.1 ('abc'), built 2025-07-31T13:03:33Z"`)
	script(t, c.programs, "bao", `echo 'OpenBao v2.6.0 (abc), built 2026-05-04T03:02:01Z'`)
	script(t, c.programs, "absent", `echo 'command not found'`)
	script(t, c.programs, "go", `[ -z "${LACKS:-}" ] || echo "$LACKS" >"$NOT_RUN"; printf '%b' "$TESTS"; exit "$STATUS"`)
	c.write(t, "README.md", englishTable)
	c.write(t, "README.zh-CN.md", chineseTable)
	return c
}

func (c clone) write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(c.folder, name), []byte(text), 0o600))
}

// withRows is a table of before the first run with rows.
func withRows(table string, rows ...string) string {
	return strings.Replace(table, "<!-- to here -->", strings.Join(append(rows, "<!-- to here -->"), "\n"), 1)
}

// What `go test -v` prints, with \n for a new line.
const (
	twoPass   = `=== RUN   TestA\n--- PASS: TestA (0.01s)\n    --- PASS: TestA/sub (0.00s)\n--- PASS: TestB (0.01s)\n--- SKIP: TestC (0.00s)\nPASS\nok  \te2e\t0.1s\n`
	oneFails  = `--- PASS: TestA (0.01s)\n--- FAIL: TestB (0.01s)\n--- SKIP: TestC (0.00s)\nFAIL\nFAIL\te2e\t0.1s\nFAIL\n`
	timedOut  = `--- PASS: TestA (0.01s)\n--- FAIL: TestB (0.01s)\npanic: test timed out after 30m0s\nFAIL\te2e\t1800s\nFAIL\n`
	notBuilt  = `FAIL\te2e [build failed]\nFAIL\n`
	mainFails = `--- PASS: TestA (0.01s)\nPASS\nFAIL: the shared Vault: it leaks\nFAIL\te2e\t0.1s\n`
)

func TestMakeCompatKeepsOneRowForEachServer(t *testing.T) {
	c := newCompat(t)
	day := time.Now().UTC().Format(time.DateOnly)
	c.write(t, "README.md", withRows(englishTable, "| Vault 1.16.3 | 2026-01-02 | 9 | 9 | 9 |", "| Vault 1.16.30 | 2026-01-02 | 9 | 9 | 9 |"))
	for _, step := range []struct {
		name, tests, status string
		env, versions       []string
		succeeds            bool
		english, chinese    []string // the rows after it
	}{
		{
			"the first run on two servers, one of which has a row", twoPass, "0", nil,
			[]string{"1.16", "1.20"},
			true,
			[]string{"| Vault 1.16.3 | " + day + " | 2 | 1 | 0 |", "| Vault 1.16.30 | 2026-01-02 | 9 | 9 | 9 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
			[]string{"| Vault 1.16.3 | " + day + " | 2 | 1 | 0 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
		},
		{
			"the same again", twoPass, "0", nil,
			[]string{"1.16", "1.20"},
			true,
			[]string{"| Vault 1.16.3 | " + day + " | 2 | 1 | 0 |", "| Vault 1.16.30 | 2026-01-02 | 9 | 9 | 9 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
			[]string{"| Vault 1.16.3 | " + day + " | 2 | 1 | 0 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
		},
		{
			"a test fails on one server", oneFails, "1", nil,
			[]string{"1.16"},
			false,
			[]string{"| Vault 1.16.3 | " + day + " | 1 | 1 | 1 |", "| Vault 1.16.30 | 2026-01-02 | 9 | 9 | 9 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
			[]string{"| Vault 1.16.3 | " + day + " | 1 | 1 | 1 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |"},
		},
		{
			"OpenBao, which VAULT_BIN names", twoPass, "0",
			[]string{"VAULT_BIN=" + filepath.Join(c.programs, "bao")},
			[]string{"1.16"},
			true,
			[]string{"| Vault 1.16.3 | " + day + " | 1 | 1 | 1 |", "| Vault 1.16.30 | 2026-01-02 | 9 | 9 | 9 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |", "| OpenBao 2.6.0 | " + day + " | 2 | 1 | 0 |"},
			[]string{"| Vault 1.16.3 | " + day + " | 1 | 1 | 1 |", "| Vault 1.20.1 | " + day + " | 2 | 1 | 0 |", "| OpenBao 2.6.0 | " + day + " | 2 | 1 | 0 |"},
		},
	} {
		printed, err := c.run(t, ".", append(step.env, "TESTS="+step.tests, "STATUS="+step.status), append([]string{"scripts/compat.sh"}, step.versions...)...)
		require.Equal(t, step.succeeds, err == nil, "%s: %s", step.name, printed)
		require.Equal(t, withRows(englishTable, step.english...), string(read(t, c.folder, "README.md")), step.name)
		require.Equal(t, withRows(chineseTable, step.chinese...), string(read(t, c.folder, "README.zh-CN.md")), step.name)
	}
}

func TestARunOfMakeCompatThatBreaksOffLeavesTheTables(t *testing.T) {
	for name, tests := range map[string]string{
		"its time is over": timedOut, "the tests do not build": notBuilt, "the shared server leaks, of which no test is the sum": mainFails,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCompat(t)
			printed, err := c.run(t, ".", []string{"TESTS=" + tests, "STATUS=1"}, "scripts/compat.sh", "1.16")
			require.Error(t, err)
			require.Contains(t, printed, "The tests on Vault 1.16.3 broke off")
			require.Equal(t, englishTable, string(read(t, c.folder, "README.md")))
			require.Equal(t, chineseTable, string(read(t, c.folder, "README.zh-CN.md")))
		})
	}
}

func TestARunOfMakeCompatThatLeavesTestsOutShowsItsRowAndWritesNone(t *testing.T) {
	c := newCompat(t)
	printed, err := c.run(t, ".", []string{"TESTS=" + twoPass, "STATUS=0", "LACKS=PHP: php is not installed"}, "scripts/compat.sh", "1.16")
	require.NoError(t, err, printed)
	require.Contains(t, printed, "the row of Vault 1.16.3 stays as it is")
	require.Contains(t, printed, "| Vault 1.16.3 | "+time.Now().UTC().Format(time.DateOnly)+" | 2 | 1 | 0 |\n\nNOT RUN on this machine:\n  PHP: php is not installed\n")
	require.Equal(t, englishTable, string(read(t, c.folder, "README.md")))
	require.Equal(t, chineseTable, string(read(t, c.folder, "README.zh-CN.md")))
}

func TestMakeCompatFailsWhereItHasNowhereToWrite(t *testing.T) {
	for name, text := range map[string]string{"no table": "# English\n", "a table without an end": strings.Replace(englishTable, "<!-- to here -->", "", 1)} {
		t.Run(name, func(t *testing.T) {
			c := newCompat(t)
			c.write(t, "README.md", text)
			printed, err := c.run(t, ".", []string{"TESTS=" + twoPass, "STATUS=0"}, "scripts/compat.sh", "1.16")
			require.Error(t, err)
			require.Contains(t, printed, "README.md has no table")
			require.Equal(t, text, string(read(t, c.folder, "README.md")))
		})
	}
}

func TestMakeCompatRefusesAProgramThatIsNoServer(t *testing.T) {
	c := newCompat(t)
	printed, err := c.run(t, ".", []string{"TESTS=" + twoPass, "STATUS=0", "VAULT_BIN=" + filepath.Join(c.programs, "absent")}, "scripts/compat.sh")
	require.Error(t, err)
	require.Contains(t, printed, "does not answer like Vault or OpenBao")
	require.Equal(t, englishTable, string(read(t, c.folder, "README.md")))
}

// The tables of the repository are those that scripts/compat.sh writes: a run in a
// clone with the READMEs as they are finds both.
func TestTheREADMEsHaveTheTablesOfMakeCompat(t *testing.T) {
	c := newCompat(t)
	before := map[string]string{}
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		before[name] = string(read(t, "../..", name))
		c.write(t, name, before[name])
	}
	row := "| OpenBao 0.0.1 | " + time.Now().UTC().Format(time.DateOnly) + " | 2 | 1 | 0 |\n<!-- to here -->\n"
	script(t, c.programs, "bao", `echo 'OpenBao v0.0.1 (abc), built 2026-05-04T03:02:01Z'`)
	printed, err := c.run(t, ".", []string{"TESTS=" + twoPass, "STATUS=0", "VAULT_BIN=" + filepath.Join(c.programs, "bao")}, "scripts/compat.sh")
	require.NoError(t, err, printed)
	for name, text := range before {
		require.Equal(t, strings.Replace(text, "<!-- to here -->\n", row, 1), string(read(t, c.folder, name)))
	}
}
