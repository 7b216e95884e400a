#!/bin/sh
# Builds the plugin twice, in two folders and for two users, and fails unless both
# builds are the same. The second finds nothing of the first: other folders, another
# home and environment, an empty cache, and for root also another user id.
set -eu
umask 022
cd "$(dirname "$0")/.."
version=v0.0.0-reproducible

say() { printf '%s\n' "$*" >&2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/reproducible.XXXXXX")
cleanup() {
	trap '' INT TERM HUP
	chmod -R u+w "$work"
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Only what version control has or would take, as it is now.
first=$work/first second="$work/a second folder/that lies deeper"
for folder in "$first" "$second"; do
	mkdir -p "$folder"
	git ls-files --cached --others --exclude-standard | while IFS= read -r name; do
		[ ! -e "$name" ] || printf '%s\n' "$name"
	done | tar -cf - -T - | tar -xf - -C "$folder"
done

"$first/scripts/build.sh" "$version" "$work/first.out"

# Modules are downloaded only once, but found under another name.
modules=$(go env GOMODCACHE)
mkdir -p "$modules" "$work/home"
ln -s "$modules" "$work/modules"

# Root takes the unprivileged user id 65534, with leave to read root's modules.
as=
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
	as='setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search'
	if $as true 2>/dev/null; then
		chown -R 65534:65534 "$work"
	else
		as=
	fi
fi
[ -n "$as" ] || say 'Both builds run under the same user id: only root can take another.'
umask 077
# $as is a list of words.
env -i PATH="$PATH" HOME="$work/home" USER=builder TZ=Asia/Shanghai LANG=zh_CN.UTF-8 TMPDIR="$work/home" \
	GOCACHE="$work/home/cache" GOMODCACHE="$work/modules" GOPROXY="$(go env GOPROXY)" GOSUMDB="$(go env GOSUMDB)" \
	GOTOOLCHAIN=local GOROOT="$(go env GOROOT)" GOFLAGS='-tags=elsewhere -trimpath=false' GOAMD64=v3 GOARM64=v9.0 \
	$as "$second/scripts/build.sh" "$version" "$work/home/second.out"

if ! cmp "$work/first.out" "$work/home/second.out"; then
	say 'Two builds of the same source differ.'
	exit 1
fi
say 'Two builds in two folders, for two users, are the same:'
if command -v sha256sum >/dev/null; then
	sha256sum "$work/first.out"
else
	shasum -a 256 "$work/first.out"
fi | cut -d ' ' -f 1 >&2
