// Calls WeChat with a token from Vault, once for each line of its input. Node 18
// or later, without dependencies.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
// WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
// WECHAT_MOUNT (wechat) and WECHAT_URL (https://api.weixin.qq.com).
import { createInterface } from "node:readline";

const REJECTED = [40001, 40014, 42001];

// Tokens hands out the access token of an account.
class Tokens {
  #vault;
  #headers;
  #mount;
  #account;
  #token;
  #readAgain = 0;
  #reading; // the read that is under way: however many wait, Vault is asked once

  constructor({ vault, vaultToken, namespace, mount = "wechat", account }) {
    this.#vault = vault;
    this.#headers = { "X-Vault-Token": vaultToken, ...(namespace && { "X-Vault-Namespace": namespace }) };
    this.#mount = mount;
    this.#account = account;
  }

  // get returns a token that WeChat accepts, from memory while its ttl lasts.
  async get() {
    if (performance.now() < this.#readAgain) return this.#token;
    this.#reading ??= this.#read().finally(() => (this.#reading = undefined));
    return this.#reading;
  }

  async #read() {
    try {
      const data = await this.#ask("token");
      this.#token = data.access_token;
      this.#readAgain = performance.now() + data.ttl * 1000;
    } catch (error) {
      if (this.#token === undefined) throw error;
      // The token is good for two minutes more: Vault may be back by then.
      console.error(error.message);
      this.#readAgain = performance.now() + 5000;
    }
    return this.#token;
  }

  // rejected reports a token that WeChat rejected. If there is another one it
  // returns true; otherwise WeChat has no newer one: the fault lies
  // elsewhere, or is over in half a minute, after which the call may be repeated
  // once.
  async rejected(token) {
    if (token !== this.#token) return true; // another call was here before
    const { changed } = await this.#ask("refresh", { rejected_token: token });
    if (changed && token === this.#token) this.#readAgain = 0;
    return changed;
  }

  async #ask(area, body) {
    try {
      const url = `${this.#vault}/v1/${this.#mount}/${area}/${this.#account}`;
      return (await call(url, this.#headers, body)).data;
    } catch (error) {
      throw new Error(`Vault: ${error.message}`);
    }
  }
}

// call sends a request, with a JSON body if there is one, and returns the JSON
// answer. Its errors do not show the URL, which may hold a token.
async function call(url, headers = {}, body = undefined) {
  const answer = await fetch(url, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(10_000),
  });
  if (!answer.ok) throw new Error(`HTTP ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// callbackIPs stands for any call of WeChat. One that is answered with a rejection
// of the token is repeated once, if Vault says that there is another token.
async function callbackIPs(wechat, tokens) {
  for (let repeated = false; ; repeated = true) {
    const token = await tokens.get();
    const query = new URLSearchParams({ access_token: token });
    const { errcode = 0, errmsg, ip_list } = await call(`${wechat}/cgi-bin/getcallbackip?${query}`);
    if (errcode === 0) return ip_list;
    if (repeated || !REJECTED.includes(errcode) || !(await tokens.rejected(token))) {
      throw new Error(`WeChat: errcode ${errcode}: ${errmsg}`);
    }
  }
}

const { env } = process;
const wechat = env.WECHAT_URL ?? "https://api.weixin.qq.com";
const tokens = new Tokens({
  vault: env.VAULT_ADDR,
  vaultToken: env.VAULT_TOKEN,
  namespace: env.VAULT_NAMESPACE,
  mount: env.WECHAT_MOUNT,
  account: env.WECHAT_ACCOUNT,
});
for await (const _ of createInterface({ input: process.stdin })) {
  try {
    console.log(`ok: ${(await callbackIPs(wechat, tokens)).length} addresses`);
  } catch (error) {
    console.log(`failed: ${error.message}`);
  }
}
