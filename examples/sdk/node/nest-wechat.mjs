// nest-wechat with an account in Vault. The SDK looks into its cache before it asks
// WeChat, so a cache that reads from Vault is all it needs. It insists on a secret
// and never uses it while the cache has a token.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url); // the SDK has no ES module
const { WeChatService } = require("nest-wechat");

export function cacheAdapter(account) {
  // In seconds, and only as far ahead as it is looked at.
  const soon = () => Date.now() / 1000 + 60;
  return {
    async get(key) {
      if (key.startsWith(WeChatService.KEY_ACCESS_TOKEN)) {
        return { access_token: await account.token(), expires_in: soon() };
      }
      if (key.startsWith(WeChatService.KEY_TICKET)) {
        return { ticket: await account.ticket(), expires_in: soon() };
      }
    },
    set() {},
    remove: () => false,
    close() {},
  };
}

// example answers a line of try.mjs.
export function example(account, appid, wechat) {
  const service = new WeChatService({ appId: appid, secret: "in Vault", cacheAdapter: cacheAdapter(account) });
  // The SDK knows WeChat's address only, and has no call without side effects: any
  // that needs a token does.
  createRequire(require.resolve("nest-wechat"))("axios").interceptors.request.use((request) => {
    request.url = request.url.replace("https://api.weixin.qq.com", wechat);
    return request;
  });
  return {
    call: async () => (await service.mp.getPhoneNumber("a code", await service.getToken())).data,
    sign: async (url) => ({ ...(await service.jssdkSignature(url)), url }),
  };
}
