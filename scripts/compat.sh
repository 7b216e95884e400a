#!/bin/sh
# compat.sh VERSION...
#
# Runs the end-to-end tests that need one server on each of the older Vaults that
# scripts/vault-VERSION pins, which are built on their first use. With VAULT_BIN set
# it runs them on that server instead; OpenBao's is as welcome.
#
# On a busy machine GOFLAGS=-parallel=8 lets fewer tests run at a time.
#
# Where a test cannot run on a server it skips itself and says why. The last lines
# sum up what ran where, as rows of a Markdown table, and what this machine lacks a
# program for.
set -eu
cd "$(dirname "$0")/.."

results=$(mktemp -d "${TMPDIR:-/tmp}/wechat-compat.XXXXXX")
trap 'rm -rf "$results"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

failed=0

# count WORD: how many tests ended so, without their subtests.
count() { grep -c "^--- $1: " "$results/log" || :; }

# run PROGRAM: runs the tests on a server.
run() {
	host=$("$1" version | sed -n '1s/^\([^ ]*\) v\([^ ,]*\).*/\1 \2/p')
	echo "=== $host"
	{
		VAULT_BIN=$1 NOT_RUN=$results/not-run go test -tags e2e -count=1 -v -timeout 30m -skip '^TestCluster' ./e2e && status=0 || status=$?
		echo "$status" >"$results/status"
	} 2>&1 | tee "$results/log"
	[ "$(cat "$results/status")" -eq 0 ] || failed=1
	echo "| $host | $(date -u +%Y-%m-%d) | $(count PASS) | $(count SKIP) | $(count FAIL) |" >>"$results/rows"
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
cat "$results/rows"
if [ -s "$results/not-run" ]; then
	echo
	echo 'NOT RUN on this machine:'
	sort -u "$results/not-run" | sed 's/^/  /'
fi
exit "$failed"
