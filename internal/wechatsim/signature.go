package wechatsim

import (
	"crypto/sha1"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// Signature is what a page gives to wx.config, and the page's address.
type Signature struct {
	AppID     string `json:"appid"`
	Timestamp int64  `json:"timestamp"` // seconds since 1970
	NonceStr  string `json:"noncestr"`
	URL       string `json:"url"` // a fragment does not count
	Signature string `json:"signature"`
}

// CheckSignature tells whether one of the account's jsapi tickets that are
// accepted now makes this signature, as WeChat's browser finds out when a page
// calls wx.config.
func (s *Sim) CheckSignature(sig Signature) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, t := range s.tickets {
		if t.account.id == sig.AppID && t.typ == "jsapi" && t.accepted(now) && Sign(t.value, sig) == sig.Signature {
			return true
		}
	}
	return false
}

// Sign returns the signature that a ticket makes; sig.Signature and sig.AppID do
// not count.
func Sign(ticket string, sig Signature) string {
	url, _, _ := strings.Cut(sig.URL, "#")
	text := "jsapi_ticket=" + ticket + "&noncestr=" + sig.NonceStr +
		"&timestamp=" + strconv.FormatInt(sig.Timestamp, 10) + "&url=" + url
	sum := sha1.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}
