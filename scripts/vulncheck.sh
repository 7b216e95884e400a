#!/bin/sh
# Looks for known vulnerabilities in what the plugin is built of, with the
# govulncheck that scripts/vulncheck pins. It asks Go's vulnerability database over
# the network, or the one that GOVULNDB names, which can be a folder: file:///...
set -eu
cd "$(dirname "$0")/.."
govulncheck=$(scripts/pinned.sh vulncheck 'half a minute on two cores' -ldflags='-s -w')

status=0
scripts/aloud.sh 'Looking for known vulnerabilities' 'about a minute' "$govulncheck" ${GOVULNDB:+-db "$GOVULNDB"} ./... || status=$?
case $status in
0) ;;
3)
	echo 'There are known vulnerabilities; they are above.' >&2
	exit 1
	;;
*)
	echo "Nothing was checked: govulncheck ended with status $status. If the vulnerability database cannot be reached from here, set GOVULNDB to one that can." >&2
	exit 1
	;;
esac
