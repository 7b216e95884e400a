#!/bin/sh
# build.sh VERSION FILE
#
# Builds the plugin to FILE, for GOOS and GOARCH of the environment: static, and for
# one version of Go and of the source the same bytes for everybody. So nothing else
# that may be set for other builds has a say, and neither folders nor the state of
# version control get into the program.
set -eu
version=$1
case $2 in
/*) file=$2 ;;
*) file=$PWD/$2 ;;
esac
cd "$(dirname "$0")/.."

# Vault registers a plugin only under a semantic version with a leading v.
semantic() {
	case $1 in *[!0-9A-Za-z.+-]*) return 1 ;; esac
	printf %s "$1" | grep -Eqx 'v(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?'
}
if ! semantic "$version"; then
	example=v1.2.3
	! semantic "v$version" || example=v$version
	printf 'VERSION=%s: Vault takes a plugin only with a semantic version and a leading v. Write VERSION=%s.\n' "$version" "$example" >&2
	exit 1
fi

# Each default of Go's: a variable set here overrides `go env -w` too.
export GOFLAGS= GOEXPERIMENT= GOFIPS140=off GOWORK=off GOAMD64=v1 GOARM64=v8.0 CGO_ENABLED=0
what="Building ${file##*/} $version for $(go env GOOS)/$(go env GOARCH)"
exec scripts/aloud.sh "$what" 'seconds, or two minutes on two cores if nothing of it is cached' \
	go build -trimpath -buildvcs=false \
	-ldflags "-s -w -X github.com/vault-wechat/vault-plugin-secrets-wechat.Version=$version" \
	-o "$file" ./cmd/vault-plugin-secrets-wechat
