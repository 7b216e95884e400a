#!/bin/sh
# compat.sh VERSION...
#
# Runs the end-to-end tests that need one server on each of the older Vaults that
# scripts/vault-VERSION pins, which are built on their first use. With VAULT_BIN set
# it runs them on that server instead; OpenBao's is as welcome.
#
# On a busy machine GOFLAGS=-parallel=8 lets fewer tests run at a time.
#
# Where a test cannot run on a server it skips itself and says why. Both READMEs have
# a table of what came of it, with a row for each server: a run replaces the row of its
# own. It does not where this machine lacks a program for a test. The last lines show the
# rows of this call, and what the machine lacks.
set -eu
cd "$(dirname "$0")/.."

results=$(mktemp -d "${TMPDIR:-/tmp}/wechat-compat.XXXXXX")
trap 'rm -rf "$results"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

failed=0

say() { printf '%s\n' "$*" >&2; }

# count WORD: how many tests ended so, without their subtests.
count() { grep -c "^--- $1: " "$results/log" || :; }

# whole: whether the tests ran to their end, so that their sums are those of all.
whole() {
	[ "$status" -eq 0 ] || { [ "$(count FAIL)" -gt 0 ] && ! grep -q '^panic: ' "$results/log"; }
}

# record SERVER ROW: puts a row into the documents' tables, where the server's former
# one is or at the end.
record() {
	for document in README.md README.zh-CN.md; do
		awk -v server="$1" -v row="$2" '
			$0 == "<!-- make compat writes the rows from here -->" { inside = 1 }
			inside && (index($0, "| " server " |") == 1 || $0 == "<!-- to here -->") {
				if (!written) print row
				written = 1
				if ($0 != "<!-- to here -->") next
				inside = 0
			}
			{ print }
			END { exit !written || inside }
		' "$document" >"$results/document" || {
			say "$document has no table of what make compat found."
			exit 1
		}
		cat "$results/document" >"$document"
	done
}

# run PROGRAM: runs the tests on a server.
run() {
	host=$("$1" version | sed -n '1s/^\([^ ]*\) v\([^ ,]*\).*/\1 \2/p')
	if [ -z "$host" ]; then
		say "$1 version does not answer like Vault or OpenBao."
		exit 1
	fi
	echo "=== $host"
	{
		VAULT_BIN=$1 NOT_RUN=$results/not-run scripts/aloud.sh "Running the end-to-end tests on $host" 'about ten minutes' \
			go test -tags e2e -count=1 -v -timeout 30m -skip '^TestCluster' ./e2e && status=0 || status=$?
		echo "$status" >"$results/status"
	} 2>&1 | tee "$results/log"
	status=$(cat "$results/status")
	[ "$status" -eq 0 ] || failed=1
	row="| $host | $(date -u +%Y-%m-%d) | $(count PASS) | $(count SKIP) | $(count FAIL) |"
	if ! whole; then
		say "The tests on $host broke off: its row stays as it is."
		return
	fi
	echo "$row" >>"$results/rows"
	if [ -s "$results/not-run" ]; then
		# Such a test passes, and must not look like what has passed.
		say "This machine lacks programs for some tests: the row of $host stays as it is."
	else
		record "$host" "$row"
	fi
}

if [ -n "${VAULT_BIN:-}" ]; then
	program=$(scripts/vault.sh)
	run "$program"
else
	for version; do
		program=$(scripts/pinned.sh "vault-$version" 'ten minutes on two cores' -ldflags='-s -w')
		run "$program"
	done
fi

echo
echo '| server | date | passed | skipped | failed |'
echo '| --- | --- | ---: | ---: | ---: |'
[ ! -e "$results/rows" ] || cat "$results/rows"
if [ -s "$results/not-run" ]; then
	echo
	echo 'NOT RUN on this machine:'
	sort -u "$results/not-run" | sed 's/^/  /'
fi
exit "$failed"
