// Command shop uses the SDK github.com/silenceper/wechat/v2 with an account in
// Vault, whose adapter is in vault.go. It reads lines: "call" asks WeChat something
// with the access token, "sign" and an address gives what a page at that address
// needs for wx.config.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN, the account's name as
// WECHAT_ACCOUNT and its AppID as WECHAT_APPID; where they differ from the default,
// VAULT_NAMESPACE (none), WECHAT_MOUNT (wechat) and WECHAT_URL
// (https://api.weixin.qq.com).
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/silenceper/wechat/v2/cache"
	"github.com/silenceper/wechat/v2/officialaccount"
	"github.com/silenceper/wechat/v2/officialaccount/config"
	"github.com/silenceper/wechat/v2/util"
)

func main() {
	vault := &account{
		vault:      os.Getenv("VAULT_ADDR"),
		vaultToken: os.Getenv("VAULT_TOKEN"),
		namespace:  os.Getenv("VAULT_NAMESPACE"),
		mount:      cmp.Or(os.Getenv("WECHAT_MOUNT"), "wechat"),
		name:       os.Getenv("WECHAT_ACCOUNT"),
	}
	if base := os.Getenv("WECHAT_URL"); base != "" {
		util.SetURIModifier(func(uri string) string { return strings.Replace(uri, "https://api.weixin.qq.com", base, 1) })
	}

	// No AppSecret. The SDK insists on a cache, which stays empty: the tokens are
	// Vault's. For a mini program the handle is set in the same way.
	official := officialaccount.NewOfficialAccount(&config.Config{AppID: os.Getenv("WECHAT_APPID"), Cache: cache.NewMemory()})
	official.SetAccessTokenHandle(vault)
	official.GetJs().SetJsTicketHandle(vault)

	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		result, err := "", error(nil)
		if page, sign := strings.CutPrefix(lines.Text(), "sign "); sign {
			result, err = signature(official, page)
		} else {
			result, err = callbackIPs(official, vault)
		}
		if err != nil {
			fmt.Println("failed:", err)
		} else {
			fmt.Println("ok:", result)
		}
	}
}

// callbackIPs stands for any call of the SDK. One that WeChat answers with a
// rejection of the token is repeated once, if Vault says that there is another.
func callbackIPs(official *officialaccount.OfficialAccount, vault *account) (string, error) {
	for repeated := false; ; repeated = true {
		token, err := official.GetAccessToken()
		if err != nil {
			return "", err
		}
		ips, err := official.GetBasic().GetCallbackIP()
		if refusal, ok := errors.AsType[*util.CommonError](err); !repeated && ok && isRejection(refusal.ErrCode) {
			changed, err := vault.rejected(context.Background(), token)
			if err != nil {
				return "", err
			}
			if changed {
				continue
			}
		}
		return fmt.Sprint(len(ips), " addresses"), err
	}
}

// isRejection tells whether WeChat refused the token.
func isRejection(errcode int64) bool {
	return errcode == 40001 || errcode == 40014 || errcode == 42001
}

// signature returns what a page needs for wx.config.
func signature(official *officialaccount.OfficialAccount, page string) (string, error) {
	config, err := official.GetJs().GetConfig(page)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(config)
	return string(text), err
}
