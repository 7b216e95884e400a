#!/bin/sh
# fuzz.sh COUNT
#
# Runs every fuzz target of the module for COUNT executions, one after the other,
# because go test takes one target at a time. The bound is a count, not a time:
# up to Go 1.26 a run that ends by time can fail with "context deadline exceeded"
# although it found nothing (https://go.dev/issue/75804).
set -eu
cd "$(dirname "$0")/.."

# go test lists the targets of a package, then the package: "ok  <package>  0.01s".
listed=$(scripts/aloud.sh 'Listing the fuzz targets' 'seconds, or two minutes on two cores if nothing is compiled' \
	go test -list '^Fuzz' ./...)
targets=
found=0
while read -r first second _; do
	case $first in
	Fuzz*) targets="$targets $first" ;;
	ok)
		for target in $targets; do
			scripts/aloud.sh "Fuzzing $target $1 times" 'seconds, or a minute for the first of a package' \
				go test -run='^$' -fuzz="^$target\$" -fuzztime="$1x" "$second" </dev/null
			found=$((found + 1))
		done
		targets=
		;;
	esac
done <<EOF
$listed
EOF

if [ "$found" -eq 0 ]; then
	echo 'There is no fuzz target.' >&2
	exit 1
fi
