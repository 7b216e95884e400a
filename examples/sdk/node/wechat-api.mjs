// wechat-api (node-webot) with an account in Vault: its own ways to share a token
// and a ticket among processes read them from there. There is no secret.
import { promisify } from "node:util";
import WechatAPI from "wechat-api";

export function api(account, appid) {
  // In milliseconds, and only as far ahead as it is looked at.
  const soon = () => Date.now() + 60_000;
  const give = (read) => (callback) => read().then((value) => callback(null, value), callback);
  const api = new WechatAPI(
    appid,
    undefined,
    give(async () => ({ accessToken: await account.token(), expireTime: soon() })),
    (token, callback) => callback(new Error("tokens come from Vault")),
  );
  const ticket = give(async () => ({ ticket: await account.ticket(), expireTime: soon() }));
  api.registerTicketHandle(
    (type, callback) => ticket(callback),
    (type, ticket, callback) => callback(new Error("tickets come from Vault")),
  );
  return api;
}

// example answers a line of try.mjs.
export function example(account, appid, wechat) {
  const sdk = api(account, appid);
  sdk.endpoint = wechat;
  return {
    call: async () => {
      try {
        return await promisify(sdk.getIp.bind(sdk))();
      } catch (error) {
        if (error.name === "WeChatAPIError") return { errcode: error.code };
        throw error;
      }
    },
    sign: async (url) => ({ ...(await promisify(sdk.getJsConfig.bind(sdk))({ url })), url }),
  };
}
