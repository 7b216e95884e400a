// Tries one of the adapters: node try.mjs node-easywechat. It reads lines: "call"
// asks WeChat something with the access token, "sign" and an address gives what a
// page at that address needs for wx.config.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN, the account's name as
// WECHAT_ACCOUNT and its AppID as WECHAT_APPID; where they differ from the default,
// VAULT_NAMESPACE (none), WECHAT_MOUNT (wechat) and WECHAT_URL
// (https://api.weixin.qq.com).
import { createInterface } from "node:readline";
import { Account } from "./vault.mjs";

const { env } = process;
const account = new Account({
  vault: env.VAULT_ADDR,
  vaultToken: env.VAULT_TOKEN,
  namespace: env.VAULT_NAMESPACE,
  mount: env.WECHAT_MOUNT,
  name: env.WECHAT_ACCOUNT,
});
const { example } = await import(`./${process.argv[2]}.mjs`);
const sdk = example(account, env.WECHAT_APPID, env.WECHAT_URL ?? "https://api.weixin.qq.com");

// A call that WeChat answers with a rejection of the token is repeated once, if
// Vault says that there is another.
async function call() {
  for (let repeated = false; ; repeated = true) {
    const token = await account.token();
    const { errcode = 0 } = await sdk.call();
    const rejected = [40001, 40014, 42001].includes(errcode);
    if (!rejected || repeated || !(await account.rejected(token))) return errcode;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [what, url] = line.split(" ");
  try {
    console.log("ok:", what === "sign" ? JSON.stringify(await sdk.sign(url)) : `errcode ${await call()}`);
  } catch (error) {
    console.log("failed:", error.message.split("\n")[0]);
  }
}
process.exit(0); // an SDK may have a timer left
