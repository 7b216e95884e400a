package wechat

import (
	"cmp"
	"strings"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// platforms holds what the engine knows of each platform, by the kind of its accounts.
var platforms = map[string]*platform{weixin.name: weixin}

// platformOf returns where the account of a configuration is.
func platformOf(cfg *config) *platform { return platforms[cmp.Or(cfg.Kind, weixin.name)] }

// tokenOf returns whose token's record is stored at key. The platform is nil if it is none's.
func tokenOf(key string) (p *platform, identity string) {
	for _, p := range platforms {
		if identity, ok := strings.CutPrefix(key, p.recordKey(tokenSlot, "")); ok {
			return p, storedName(identity)
		}
	}
	return nil, ""
}

// endpoint is whom to ask. For a trial nothing is kept: the configuration is not stored.
func (cfg *config) endpoint(trial bool) endpoint {
	way := upstream.Endpoint{BaseURL: cfg.BaseURL, Proxy: cfg.ProxyURL, CAPEM: cfg.CAPEM, Timeout: cfg.RequestTimeout, Trial: trial}
	return endpoint{way, platformOf(cfg).rule, cfg.AppID, cfg.Secret}
}
