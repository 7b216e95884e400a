#!/bin/sh
# pinned.sh MODULE TIME [BUILD FLAG...]
#
# Prints the path of the program that the Go module scripts/MODULE pins: the
# package on the "tool" line of its go.mod. The first call builds it, which takes
# about TIME (a text), and keeps it in the user's cache folder, where every clone
# with the same pin finds it. Everything but the path goes to stderr.
#
# Two clones that build at once do the work twice and disturb each other in
# nothing: each builds in a folder of its own, and a rename puts the finished
# program in its place.
set -eu

module=$1 takes=$2
shift 2
cd "$(dirname "$0")/$module"

# The program is for this machine and as pinned, whatever the caller builds for
# or sets for builds of its own.
export GOFLAGS= GOWORK=off CGO_ENABLED=0
GOOS=$(go env GOHOSTOS) GOARCH=$(go env GOHOSTARCH)
export GOOS GOARCH

package=$(sed -n 's/^tool //p' go.mod)
name=${package##*/}
version=$(go env GOVERSION)
key=$({ cat go.mod go.sum && echo "$version $GOOS $GOARCH $*"; } | git hash-object --stdin)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vault-plugin-secrets-wechat
program=$cache/$name-$key/$name

if [ -x "$program" ]; then
	printf '%s\n' "$program"
	exit
fi

say() { printf '%s\n' "$*" >&2; }

mkdir -p "$cache"
stage=$(mktemp -d "$cache/building.XXXXXX")
running=

# The go command runs in the background, where it does not hear an interrupt, and
# leaves its compilers running when it is ended: they are ended with it.
cleanup() {
	trap '' INT TERM HUP
	if [ -n "$running" ]; then
		compilers=$(ps -A -o ppid= -o pid= 2>/dev/null | awk -v go="$running" '$1 == go { print $2 }')
		# Unquoted: a list of numbers.
		kill -TERM "$running" $compilers 2>/dev/null || :
		wait "$running" 2>/dev/null || :
	fi
	rm -rf "$stage"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Temporary files of the build go where they are removed in any case, and where
# there is more room than a /tmp in memory may have.
export GOTMPDIR="$stage"

started=$(date +%s)

elapsed() {
	seconds=$(($(date +%s) - started))
	printf '%dm%02ds' $((seconds / 60)) $((seconds % 60))
}

modules() { grep -c '^go: downloading ' "$stage/list.log" || :; }

# The go command names each package when it compiles it, and not one that it
# finds compiled in its cache.
packages() { wc -l <"$stage/build.log" | tr -d ' '; }

progress_list() { say "  $(elapsed)  $(modules) modules downloaded"; }

progress_build() {
	if [ "$(tail -n 1 "$stage/build.log")" = "$package" ]; then
		say "  $(elapsed)  linking"
	else
		say "  $(elapsed)  $(packages) of at most $total packages compiled"
	fi
}

# run STEP COMMAND...: runs a step of the build with its output in STEP.out and
# STEP.log, and tells every ten seconds how far it is.
run() {
	step=$1
	shift
	"$@" >"$stage/$step.out" 2>"$stage/$step.log" &
	running=$! ticks=0
	while kill -0 "$running" 2>/dev/null; do
		sleep 1
		ticks=$((ticks + 1))
		[ $((ticks % 10)) -ne 0 ] || "progress_$step"
	done
	status=0
	wait "$running" || status=$?
	running=
	if [ "$status" -ne 0 ]; then
		tail -n 30 "$stage/$step.log" >&2
		say "Building $name failed."
		exit 1
	fi
}

say "Building $name from scripts/$module. The first time this takes about $takes; it is kept in $cache."
run list go list -mod=readonly -deps "$@" "$package"
total=$(wc -l <"$stage/list.out" | tr -d ' ')
say "  $(elapsed)  all modules are there ($(modules) downloaded); compiling"
run build go build -mod=readonly -v -trimpath "$@" -o "$stage/$name" "$package"

mkdir -p "${program%/*}"
mv -f "$stage/$name" "$program"
say "  $(elapsed)  $name is ready"
printf '%s\n' "$program"
