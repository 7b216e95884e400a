// An account in Vault, for the adapters beside this file. Node 18 or later, without
// dependencies.

export class Account {
  #url;
  #headers;
  #name;
  #token = new Kept();
  #ticket = new Kept();

  constructor({ vault, vaultToken, namespace, mount = "wechat", name }) {
    this.#url = `${vault}/v1/${mount}`;
    this.#headers = { "X-Vault-Token": vaultToken, ...(namespace && { "X-Vault-Namespace": namespace }) };
    this.#name = name;
  }

  // token returns a token that WeChat accepts, from memory while its ttl lasts.
  async token() {
    return (await this.#token.get(() => this.#ask("token"))).access_token;
  }

  // ticket returns the ticket itself, for an SDK that makes signatures by itself.
  // Rather use sign, with which the ticket stays in Vault.
  async ticket() {
    return (await this.#ticket.get(() => this.#ask("ticket"))).ticket;
  }

  // sign returns what a page at the address needs for wx.config.
  async sign(url) {
    const { appid, timestamp, noncestr, signature, url: signed } = await this.#ask("sign", { query: { url } });
    return { appId: appid, timestamp, nonceStr: noncestr, signature, url: signed };
  }

  // rejected reports a token that WeChat answered with 40001, 40014 or 42001. If it
  // returns true there is another one, and the call may be repeated once.
  async rejected(token) {
    if (token !== this.#token.last?.access_token) return true; // another call was here before
    const { changed } = await this.#ask("refresh", { body: { rejected_token: token } });
    if (changed && token === this.#token.last.access_token) this.#token.forget();
    return changed;
  }

  async #ask(area, { query, body } = {}) {
    const answer = await fetch(`${this.#url}/${area}/${this.#name}${query ? `?${new URLSearchParams(query)}` : ""}`, {
      method: body ? "POST" : "GET",
      headers: this.#headers,
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(10_000),
    });
    if (!answer.ok) throw new Error(`Vault answers HTTP ${answer.status} ${await answer.text()}`);
    return (await answer.json()).data;
  }
}

// Kept is an answer from Vault that is read again after its ttl. When Vault fails
// the last one serves, for which Vault is asked again in five seconds.
class Kept {
  last;
  #readAgain = 0;
  #reading; // the read that is under way: however many wait, Vault is asked once

  async get(read) {
    if (performance.now() >= this.#readAgain) {
      this.#reading ??= this.#renew(read).finally(() => (this.#reading = undefined));
      await this.#reading;
    }
    return this.last;
  }

  async #renew(read) {
    let wait = 5;
    try {
      this.last = await read();
      wait = this.last.ttl;
    } catch (error) {
      if (this.last === undefined) throw error;
      console.error(error.message);
    }
    this.#readAgain = performance.now() + wait * 1000;
  }

  forget() {
    this.#readAgain = 0;
  }
}
