#!/bin/sh
# Prints the absolute path of a Vault program to test and to try the plugin with:
# $VAULT_BIN, or a vault on PATH, or the one that scripts/vault pins, which is
# built on its first use. Everything but the path goes to stderr.
set -eu

say() { printf '%s\n' "$*" >&2; }

if [ -n "${VAULT_BIN:-}" ]; then
	if [ ! -f "$VAULT_BIN" ] || [ ! -x "$VAULT_BIN" ]; then
		say "VAULT_BIN=$VAULT_BIN is not an executable file."
		exit 1
	fi
	case $VAULT_BIN in
	/*) printf '%s\n' "$VAULT_BIN" ;;
	*) printf '%s\n' "$PWD/$VAULT_BIN" ;;
	esac
	exit
fi

if found=$(command -v vault); then
	if version=$("$found" version 2>/dev/null) && [ "${version#Vault v}" != "$version" ]; then
		say "Using $found ($version)."
		printf '%s\n' "$found"
		exit
	fi
	say "$found does not answer like Vault; not using it."
fi

# The minimal tag leaves out the integrations with clouds and databases. Vault's
# own release build sets the date, which is that of the pinned version; unset, Vault
# says that it was built a year before whenever it is asked.
exec "$(dirname "$0")/pinned.sh" vault 'nine minutes on two cores' -tags=minimal \
	-ldflags='-s -w -X github.com/hashicorp/vault/version.BuildDate=2025-10-22T02:33:18Z'
