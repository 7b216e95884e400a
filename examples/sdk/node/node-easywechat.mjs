// node-easywechat (hpyer) with an account in Vault: the application's access token,
// and signatures for wx.config. The ticket stays in Vault, and there is no secret.
import { OfficialAccount } from "node-easywechat";

export function officialAccount(account, config) {
  const app = new OfficialAccount(config); // app_id, and no secret
  app.setAccessToken({
    getToken: () => account.token(),
    toQuery: async () => ({ access_token: await account.token() }),
  });
  app.setTicket({ configSignature: (url) => account.sign(url) });
  return app;
}

// example answers a line of try.mjs.
export function example(account, appid, wechat) {
  const app = officialAccount(account, { app_id: appid, http: { baseURL: wechat } });
  return {
    call: async () => (await app.getClient().get("/cgi-bin/getcallbackip")).toObject(),
    sign: (url) => app.getUtils().buildJsSdkConfig(url),
  };
}
