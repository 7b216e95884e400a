package wechat

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// The tickets of a WeChat account, after its token.
const (
	jsapiTicket slot = 1 + iota // signs pages for JS-SDK
	cardTicket                  // for coupons and cards
)

// weixin is the platform of service accounts, mini programs, mini games and Channels
// accounts. An account is its AppID at one upstream, whatever its secret.
var weixin = &platform{
	name:     "wechat",
	title:    "WeChat",
	identity: weixinIdentity,
	rule:     ruleOf,
	issuers: []*issuer{
		{credential: "token", policy: tokenPolicy, fetch: stableToken, limits: limits{forcedPerDay, forcedSpacing}},
		{credential: "jsapi", policy: ticketPolicy, fetch: ticketOf("jsapi"), derived: true},
		{credential: "wx_card", policy: ticketPolicy, fetch: ticketOf("wx_card"), derived: true},
	},
}

func weixinIdentity(cfg *config) string {
	id := url.PathEscape(cfg.AppID)
	if cfg.BaseURL != defaultBaseURL || cfg.CAPEM != "" {
		sum := sha256.Sum256([]byte(cfg.BaseURL + "\x00" + cfg.CAPEM))
		id += "/" + hex.EncodeToString(sum[:16])
	}
	return id
}

func tokenPolicy(cfg *config) kept.Policy {
	return kept.Policy{
		Life: maxLifetime, Margin: refreshMargin, Overlap: overlap,
		Compare: cfg.SyncInterval, Apart: minCallInterval,
	}
}

func ticketPolicy(*config) kept.Policy {
	return kept.Policy{
		// It is due 11 minutes after it was confirmed: the background compares it after 10,
		// and a reader only if that is a minute late.
		Life: ticketGrace, Margin: ticketGrace - ticketInterval - time.Minute, Overlap: ticketGrace,
		Compare: ticketInterval, Apart: minCallInterval, Idle: ticketIdle, Prolonged: true,
	}
}

func ticketOf(kind string) func(context.Context, *client, endpoint, input) (kept.Grant, error) {
	return func(ctx context.Context, c *client, e endpoint, in input) (kept.Grant, error) {
		return c.ticket(ctx, e, in.parent, kind)
	}
}
