#!/bin/sh
# aloud.sh WHAT TIME COMMAND...
#
# Runs a command that may print nothing for minutes. Says at once WHAT it does and that
# this takes TIME (both texts), and every half minute that it still does. Both go to
# stderr. The command's output, its status and its signals are as without aloud.sh.
set -eu
what=$1 takes=$2
shift 2

printf '%s: %s.\n' "$what" "$takes" >&2
started=$(date +%s)

# The command takes this process's place, and what follows ends with it. No sleep may
# hold the caller's output: it can outlive the command by a second.
(
	told=0
	while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
		seconds=$(($(date +%s) - started))
		if [ $((seconds / 30)) -gt "$told" ]; then
			told=$((seconds / 30))
			printf '  %dm%02ds  %s goes on\n' $((seconds / 60)) $((seconds % 60)) "$what"
		fi
	done
) >&2 &
exec "$@"
