#!/bin/sh
# Tries the plugin on a real Vault: `make dev`, which builds bin/ first.
#
# Starts a development server of Vault that keeps everything in memory, registers
# and mounts the plugin, writes the account "demo" and reads its token, showing each
# command with its answer. With WECHAT_APPID and WECHAT_SECRET set it talks to WeChat,
# else to the simulator. When a line begins with "Ready", all of that is there; it
# stays until an interrupt or SIGTERM ends it, and whatever ends it, no process and
# no file of it remains.
set -eu
cd "$(dirname "$0")/.."

plugin=vault-plugin-secrets-wechat
for program in "$plugin" wechatsim; do
	if [ ! -x "bin/$program" ]; then
		echo "bin/$program is not built: run \`make dev\`." >&2
		exit 1
	fi
done

work=$(mktemp -d "${TMPDIR:-/tmp}/wechat-dev.XXXXXX")
builder= simulator= server=

# end PID: ends a process of ours, by force if it takes longer than ten seconds.
end() {
	[ -n "$1" ] || return 0
	kill -TERM "$1" 2>/dev/null || return 0
	tries=50
	while kill -0 "$1" 2>/dev/null; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || kill -KILL "$1"
		sleep 0.2
	done
}

cleanup() {
	trap '' INT TERM HUP
	end "$builder"
	end "$server" # which ends the plugin's process
	end "$simulator"
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*"; }

fail() {
	say "$*" >&2
	exit 1
}

# show COMMAND...: prints a command as one would type it, and runs it.
show() {
	printf '\n$ %s\n' "$*"
	"$@"
}

random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

sha256() {
	if command -v sha256sum >/dev/null; then
		sha256sum "$1"
	else
		shasum -a 256 "$1"
	fi | cut -d ' ' -f 1
}

# await PID COMMAND...: repeats a command until it succeeds; fails when the process
# that should make it succeed ends, or after a minute.
await() {
	pid=$1
	shift
	tries=300
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		if [ "$tries" -eq 0 ] || ! kill -0 "$pid" 2>/dev/null; then
			return 1
		fi
		sleep 0.2
	done
}

# No child gets the secret but the one that reads it from its standard input.
appid=${WECHAT_APPID:-} secret=${WECHAT_SECRET:-} base_url=
unset WECHAT_APPID WECHAT_SECRET

# In the background, because a shell that waits for a command in the foreground
# does not see a SIGTERM before the command's end, minutes later.
scripts/vault.sh >"$work/path" &
builder=$!
wait "$builder"
builder=
vault_program=$(cat "$work/path")
set_path=
if [ "$(command -v vault)" != "$vault_program" ]; then
	mkdir "$work/bin"
	ln -s "$vault_program" "$work/bin/vault"
	PATH=$work/bin:$PATH
	set_path="    export PATH=\"$work/bin:\$PATH\"
"
fi

# Nothing set for another Vault may reach this one.
for name in $(env | sed -n 's/^\(VAULT_[A-Z0-9_]*\)=.*/\1/p'); do
	unset "$name"
done

if [ -n "$appid" ] && [ -n "$secret" ]; then
	say "The account is $appid, from WECHAT_APPID; it is WeChat that answers."
elif [ -n "$appid$secret" ]; then
	fail 'Set both WECHAT_APPID and WECHAT_SECRET, or neither.'
else
	appid=wx$(random | cut -c 1-16) secret=$(random)
	WECHATSIM_SECRET=$secret bin/wechatsim -appid "$appid" >"$work/simulator" &
	simulator=$!
	await "$simulator" grep -q '^http' "$work/simulator" || fail 'The simulator did not start.'
	base_url=$(cat "$work/simulator")
	say 'WECHAT_APPID and WECHAT_SECRET are not set: the platform is a simulator on this machine,'
	say "at $base_url, the account is made up, and its tokens are good for nothing else."
fi

# The server's log shows why it did not start; it holds no secret of the account.
start_vault() {
	cat >"$work/vault.hcl" <<EOF
plugin_directory = "$(pwd -P)/bin"
EOF
	root_token=$(random)
	# Vault has no way to choose a free port itself: try some, below those that
	# systems hand out to clients. Only our server knows the token: one that
	# accepts it is not a stranger's on that port.
	for _ in 1 2 3 4 5; do
		port=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 10000))
		VAULT_ADDR=http://127.0.0.1:$port
		VAULT_DEV_ROOT_TOKEN_ID=$root_token vault server -dev -dev-no-store-token \
			-dev-listen-address="127.0.0.1:$port" -config="$work/vault.hcl" >"$work/vault.log" 2>&1 &
		server=$!
		export VAULT_ADDR VAULT_TOKEN="$root_token"
		if await "$server" vault token lookup; then
			return
		fi
		end "$server"
		server=
		unset VAULT_TOKEN
		grep -q 'address already in use' "$work/vault.log" || break
	done
	cat "$work/vault.log" >&2
	fail 'Vault did not start; its log is above.'
}
say 'Starting Vault takes some seconds.'
start_vault
say "Vault runs at $VAULT_ADDR."

sum=$(sha256 "bin/$plugin")
version=$("bin/$plugin" -version)
show vault plugin register -sha256="$sum" -version="${version##* }" secret "$plugin"
show vault secrets enable -path=wechat "$plugin"

# The secret goes through standard input: a command line is for everybody to see.
set -- vault write wechat/config/demo appid="$appid" ${base_url:+base_url="$base_url"} secret=-
printf '\n$ printf %%s "$WECHAT_SECRET" | %s\n' "$*"
printf %s "$secret" | "$@"

show vault read wechat/token/demo

cat <<EOF

To go on in another terminal:

    export VAULT_ADDR=$VAULT_ADDR
    export VAULT_TOKEN=$VAULT_TOKEN
$set_path
    vault read wechat/token/demo     # the same token, and less ttl
    vault read wechat/config/demo    # the account, without its secret
    vault path-help wechat/          # what else there is
EOF
if [ -n "$simulator" ]; then
	cat <<EOF

To write the account under a second name, and to ask the simulator whether it accepts the
token:

    export WECHAT_SECRET=$secret
    printf %s "\$WECHAT_SECRET" | vault write wechat/config/demo-staging appid=$appid base_url=$base_url secret=-
    curl "$base_url/cgi-bin/getcallbackip?access_token=\$(vault read -field=access_token wechat/token/demo)"

To log a user in without an AppSecret, with a code as wx.login gives one:

    JS_CODE=\$(curl -s -X POST "$base_url/_sim/accounts/$appid/codes" | sed 's/.*"code":"\([^"]*\)".*/\1/')
    printf %s "\$JS_CODE" | vault write wechat/code2session/demo js_code=-
EOF
fi

trap 'exit 0' INT TERM
say
say "Ready. Ctrl-C ends Vault and removes everything; until then its log is $work/vault.log."

status=0
wait "$server" || status=$?
server=
cat "$work/vault.log" >&2
fail "Vault ended by itself with status $status; its log is above."
