// The backend of a mini program. It logs users in, keeps their session keys, and
// asks WeChat for their phone numbers, and has no AppSecret: the calls that take it
// are made by Vault. Its policy is policies/mini-program.hcl. Node 18 or later,
// without dependencies.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
// WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
// WECHAT_MOUNT (wechat), WECHAT_URL (https://api.weixin.qq.com) and LISTEN
// (127.0.0.1:8080).
//
// The mini program sends JSON:
//
//   POST /login    {"code": of wx.login}                        gives a session
//   POST /phone    {"code": of a button with getPhoneNumber}    gives the number
//   POST /profile  {"rawData", "signature" of wx.getUserInfo}   is it WeChat's?
//
// the last two with the session as "Authorization: Bearer ...".
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { createServer, STATUS_CODES } from "node:http";

const REJECTED = [40001, 40014, 42001];

// For how long a login holds. The session key may end before: the mini program
// finds out with wx.checkSession, and logs in again.
const SESSION_LIFE = 2 * 3600_000;

// Failure is one that the mini program is told of, by its HTTP status.
class Failure extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

// Account is an account in Vault.
class Account {
  #url;
  #headers;
  #name;
  #token;
  #readAgain = 0;
  #reading; // the read that is under way: however many wait, Vault is asked once

  constructor({ vault, vaultToken, namespace, mount = "wechat", name }) {
    this.#url = `${vault}/v1/${mount}`;
    this.#headers = { "X-Vault-Token": vaultToken, ...(namespace && { "X-Vault-Namespace": namespace }) };
    this.#name = name;
  }

  // token returns a token that WeChat accepts, from memory while its ttl lasts.
  async token() {
    if (performance.now() < this.#readAgain) return this.#token;
    this.#reading ??= this.#read().finally(() => (this.#reading = undefined));
    return this.#reading;
  }

  async #read() {
    try {
      const data = await this.ask("token");
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

  // rejected reports a token that WeChat rejected, and tells whether there is
  // another one.
  async rejected(token) {
    if (token !== this.#token) return true; // another request was here before
    const { changed } = await this.ask("refresh", { rejected_token: token });
    if (changed && token === this.#token) this.#readAgain = 0;
    return changed;
  }

  // ask sends a request about the account to Vault, and returns the answer's data.
  async ask(area, body) {
    return (await exchange("Vault", `${this.#url}/${area}/${this.#name}`, body, this.#headers)).data;
  }
}

// exchange sends a request, with a JSON body if there is one, and returns the JSON
// answer. Its errors do not show the URL, which may hold a token.
async function exchange(whom, url, body, headers = {}) {
  const answer = await fetch(url, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(10_000),
  });
  if (!answer.ok) {
    throw Object.assign(new Error(`${whom}: HTTP ${answer.status} ${await answer.text()}`), { http: answer.status });
  }
  return answer.json();
}

const { env } = process;
const wechat = env.WECHAT_URL ?? "https://api.weixin.qq.com";
const account = new Account({
  vault: env.VAULT_ADDR,
  vaultToken: env.VAULT_TOKEN,
  namespace: env.VAULT_NAMESPACE,
  mount: env.WECHAT_MOUNT,
  name: env.WECHAT_ACCOUNT,
});

// What is known of those who have logged in, by the session's ID; with several
// servers, in a store of theirs. The session key stays here: its holder can pass for
// WeChat.
const sessions = new Map();

// login has Vault exchange the code of wx.login for the user's openid.
async function login({ code }) {
  let user;
  try {
    user = await account.ask("code2session", { js_code: code, include_session_key: true });
  } catch (error) {
    // 400 is mostly the code's fault, 429 the user's, who logs in too often.
    if (error.http === 400 || error.http === 429) throw new Failure(error.http, error.message);
    throw error;
  }
  const now = Date.now();
  for (const [id, { ends }] of sessions) if (now > ends) sessions.delete(id);
  const id = randomBytes(16).toString("hex");
  sessions.set(id, { openid: user.openid, sessionKey: user.session_key, ends: now + SESSION_LIFE });
  return { session: id };
}

// user returns the session of a request.
function user({ session }) {
  const known = sessions.get(session);
  if (!known || Date.now() > known.ends) throw new Failure(401, "log in");
  return known;
}

// phone asks WeChat for the user's number, with the account's token.
async function phone(request) {
  user(request);
  const { phone_info } = await call("/wxa/business/getuserphonenumber", { code: request.code });
  return { phone: phone_info.phoneNumber };
}

// profile tells whether WeChat has signed what the mini program says of its user.
async function profile(request) {
  const { sessionKey } = user(request);
  const want = createHash("sha1").update(request.rawData + sessionKey).digest(); // WeChat's choice
  const got = Buffer.from(String(request.signature), "hex");
  if (got.length !== want.length || !timingSafeEqual(got, want)) throw new Failure(403, "the signature is wrong");
  return { genuine: true };
}

// call calls an API of WeChat with the account's token. If WeChat rejects the token
// the call is repeated once, if Vault says that there is another.
async function call(path, body) {
  for (let repeated = false; ; repeated = true) {
    const token = await account.token();
    const query = new URLSearchParams({ access_token: token });
    const answer = await exchange("WeChat", `${wechat}${path}?${query}`, body);
    const { errcode = 0, errmsg } = answer;
    if (errcode === 0) return answer;
    if (errcode === 40029) throw new Failure(400, "the code is not good"); // bad or used
    if (repeated || !REJECTED.includes(errcode) || !(await account.rejected(token))) {
      throw new Error(`WeChat: errcode ${errcode}: ${errmsg}`);
    }
  }
}

// read returns what the mini program sends.
async function read(request) {
  let text = "";
  for await (const chunk of request) {
    text += chunk;
    if (text.length > 65536) throw new Failure(413, "the body is too long");
  }
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Failure(400, "the body is not JSON");
  }
  return { ...body, session: request.headers.authorization?.replace(/^Bearer /, "") };
}

const routes = { "POST /login": login, "POST /phone": phone, "POST /profile": profile };

const server = createServer(async (request, response) => {
  try {
    const answer = routes[`${request.method} ${request.url}`];
    if (!answer) throw new Failure(404, "there is nothing");
    const result = JSON.stringify(await answer(await read(request)));
    response.setHeader("Content-Type", "application/json").end(result);
  } catch (error) {
    // Other errors than a failure are 503 to the mini program; the log has all.
    const status = error instanceof Failure ? error.status : 503;
    console.error(`${request.url}: ${error.message}`);
    response.writeHead(status, { "Content-Type": "text/plain" }).end(`${STATUS_CODES[status]}\n`);
  }
});
const [, host, port] = /^(.*):(\d+)$/.exec(env.LISTEN ?? "127.0.0.1:8080");
server.listen(port, host, () => console.log(`listening on http://${host}:${server.address().port}`));
