#!/bin/sh
# Prints the path of the golangci-lint that scripts/lint pins, which is built on
# its first use. Everything but the path goes to stderr.
exec "$(dirname "$0")/pinned.sh" lint 'two minutes on two cores' -ldflags='-s -w'
