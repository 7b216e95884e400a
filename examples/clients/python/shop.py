"""Calls WeChat with a token from Vault, once for each line of its input.

The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
WECHAT_MOUNT (wechat) and WECHAT_URL (https://api.weixin.qq.com).
"""

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

REJECTED = {40001, 40014, 42001}


class Failure(Exception):
    """Vault or WeChat did not do what it was asked for."""


class Tokens:
    """Hands out the access token of an account, for any number of threads."""

    def __init__(self, vault, vault_token, account, mount="wechat", namespace=None):
        self._vault, self._mount, self._account = vault, mount, account
        self._headers = {"X-Vault-Token": vault_token}
        if namespace:
            self._headers["X-Vault-Namespace"] = namespace
        self._lock = threading.Lock()  # lets one thread ask Vault for all
        self._token = None
        self._read_again = 0.0

    def get(self):
        """Returns a token that WeChat accepts, from memory while its ttl lasts."""
        with self._lock:
            if time.monotonic() < self._read_again:
                return self._token
            try:
                data = self._ask("token")
            except Failure as failure:
                if self._token is None:
                    raise
                # The token is good for two minutes more: Vault may be back by then.
                print(failure, file=sys.stderr)
                self._read_again = time.monotonic() + 5
            else:
                self._token = data["access_token"]
                self._read_again = time.monotonic() + data["ttl"]
            return self._token

    def rejected(self, token):
        """Reports a token that WeChat rejected.

        Returns True if there is another one. Otherwise WeChat has no newer one
        for the account: the fault lies elsewhere, or is over in half a minute, after which
        the call may be repeated once.
        """
        with self._lock:
            if token != self._token:
                return True  # another thread was here before
            changed = self._ask("refresh", {"rejected_token": token})["changed"]
            if changed:
                self._read_again = 0.0
            return changed

    def _ask(self, area, body=None):
        try:
            url = f"{self._vault}/v1/{self._mount}/{area}/{self._account}"
            return call(url, self._headers, body)["data"]
        except Failure as failure:
            raise Failure(f"Vault: {failure}") from None


def call(url, headers=None, body=None):
    """Sends a request, with a JSON body if there is one, and returns the JSON answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Failure(f"HTTP {error.code} {error.read().decode(errors='replace')}") from None
    except (OSError, ValueError) as error:
        raise Failure(str(error)) from None


def callback_ips(wechat, tokens):
    """Stands for any call of WeChat.

    One that is answered with a rejection of the token is repeated once, if Vault
    says that there is another token.
    """
    for repeated in (False, True):
        token = tokens.get()
        query = urllib.parse.urlencode({"access_token": token})
        answer = call(f"{wechat}/cgi-bin/getcallbackip?{query}")
        errcode = answer.get("errcode", 0)
        if errcode == 0:
            return answer["ip_list"]
        if repeated or errcode not in REJECTED or not tokens.rejected(token):
            raise Failure(f"WeChat: errcode {errcode}: {answer.get('errmsg')}")


def main():
    env = os.environ
    wechat = env.get("WECHAT_URL", "https://api.weixin.qq.com")
    tokens = Tokens(
        env["VAULT_ADDR"],
        env["VAULT_TOKEN"],
        env["WECHAT_ACCOUNT"],
        env.get("WECHAT_MOUNT", "wechat"),
        env.get("VAULT_NAMESPACE"),
    )
    for _ in sys.stdin:
        try:
            print("ok:", len(callback_ips(wechat, tokens)), "addresses", flush=True)
        except Failure as failure:
            print("failed:", failure, flush=True)


if __name__ == "__main__":
    main()
