// wechat-jssdk (JasonBoy) with an account in Vault: its store looks signatures up
// there, so that none is ever made by the SDK. It insists on a secret and never
// uses it.
import jssdk from "wechat-jssdk";

class VaultStore extends jssdk.Store {
  #account;

  constructor(account) {
    super({ noInterval: true });
    this.#account = account;
  }

  async getSignature(url) {
    return { ...(await this.#account.sign(url)), modifyDate: new Date() };
  }

  async getGlobalToken() {
    return { accessToken: await this.#account.token(), modifyDate: new Date() };
  }

  flush() {}
}

export function wechat(account, appid) {
  return new jssdk.JSSDK({ appId: appid, appSecret: "in Vault", store: new VaultStore(account) });
}

// example answers a line of try.mjs. The SDK calls nothing else of WeChat with the
// token, so the call is made beside it.
export function example(account, appid, base) {
  const sdk = wechat(account, appid);
  return {
    call: async () => {
      const { accessToken } = await sdk.prepareGlobalToken();
      return (await fetch(`${base}/cgi-bin/getcallbackip?${new URLSearchParams({ access_token: accessToken })}`)).json();
    },
    sign: (url) => sdk.getSignature(url),
  };
}
