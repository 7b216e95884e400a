#!/bin/sh
# dist.sh VERSION IMAGE [-image-only]
#
# Writes a release to dist/: archives, SBOMs and images of the plugin, and
# SHA256SUMS, which it signs if SIGN_KEY names a key: `gpg:ID` for GnuPG,
# `cosign:REFERENCE` for cosign. PLATFORMS, like "linux/amd64", are those to build.
set -eu
version=$1 image=$2 only=${3:-}
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

if [ -n "$only" ]; then
	platforms='linux/amd64 linux/arm64'
else
	platforms='darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64
		linux/amd64 linux/arm64 windows/amd64 windows/arm64'
fi

# Before the minutes that the builds take.
key=${SIGN_KEY:-}
case $key in
'') ;;
gpg:?* | cosign:?*)
	if ! command -v "${key%%:*}" >/dev/null; then
		say "SIGN_KEY=$key: ${key%%:*} is not installed."
		exit 1
	fi
	;;
*)
	say "SIGN_KEY=$key: must be gpg:ID or cosign:REFERENCE."
	exit 1
	;;
esac

# The time of everything in the release is that of its commit.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

rm -rf dist
mkdir dist
for platform in ${PLATFORMS:-$platforms}; do
	os=${platform%/*} arch=${platform#*/}
	suffix=
	[ "$os" != windows ] || suffix=.exe
	GOOS=$os GOARCH=$arch scripts/build.sh "$version" \
		"dist/build/${os}_$arch/vault-plugin-secrets-wechat$suffix"
done
root=$PWD
# The tool runs here, whatever the programs run on.
(
	cd scripts/release
	GOFLAGS= GOOS= GOARCH= GOWORK=off ../aloud.sh 'Packing the release' 'about a minute' \
		go run . -binaries "$root/dist/build" -out "$root/dist" \
		-version "$version" -epoch "$epoch" -image "$image" -license "$root/LICENSE" $only
)
rm -r dist/build

case $key in
'')
	say 'Nothing is signed: SIGN_KEY names no key.'
	;;
gpg:*)
	gpg --batch --yes --local-user "${key#gpg:}" --armor --detach-sign --output dist/SHA256SUMS.asc dist/SHA256SUMS
	;;
cosign:*)
	# cosign 2 has to be told to write the bundle that cosign 3 writes in any case. A
	# signature alone, --output-signature, cosign 3 no longer writes.
	cosign sign-blob --yes --key "${key#cosign:}" --new-bundle-format --bundle dist/SHA256SUMS.sigstore.json dist/SHA256SUMS
	;;
esac
say "The release is in dist/; its checksums are in dist/SHA256SUMS."
