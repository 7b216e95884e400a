package wechatsim

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"time"
)

// codeLifetime is how long a code is good.
const codeLifetime = 5 * time.Minute

// codeLength is that of a code, in characters.
const codeLength = 32

// Code says what a code is good for and what it gives. A zero field is filled in
// by [Sim.Mint].
type Code struct {
	// API is the one that takes the code: [APICode2Session], which it is by
	// default, [APIOAuth2] or [APIPhoneNumber].
	API string `json:"api"`

	Code     string `json:"code"`     // by default random
	OpenID   string `json:"openid"`   // of the user; by default a new one
	UnionID  string `json:"unionid"`  // of the user; by default made from the openid
	Scope    string `json:"scope"`    // for oauth2; by default snsapi_base
	Snapshot bool   `json:"snapshot"` // for oauth2: is_snapshotuser is 1
	Risky    bool   `json:"risky"`    // for jscode2session: the user is refused with 40226
	Phone    string `json:"phone"`    // for getuserphonenumber; by default 13800138000
}

// code is a code that was minted.
type code struct {
	Code
	account *account
	ends    time.Time
	used    bool
}

// Mint gives a user's code for an account, which is good once and for five
// minutes, as the platform gives one to the mini program or the page of an
// application. It returns the code with all its fields. It panics if the code
// makes no sense.
func (s *Sim) Mint(appid string, c Code) Code {
	if err := c.validate(); err != nil {
		panic("wechatsim: " + err.Error())
	}
	c.API = cmp.Or(c.API, APICode2Session)
	c.Code = cmp.Or(c.Code, randomToken(codeLength))
	c.OpenID = cmp.Or(c.OpenID, "o"+randomToken(27))
	c.UnionID = cmp.Or(c.UnionID, unionID(c.OpenID))
	c.Scope = cmp.Or(c.Scope, "snsapi_base")
	c.Phone = cmp.Or(c.Phone, "13800138000")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[c.Code] = &code{Code: c, account: s.account(appid), ends: time.Now().Add(codeLifetime)}
	return c
}

func (c Code) validate() error {
	switch c.API {
	case "", APICode2Session, APIOAuth2, APIPhoneNumber:
		return nil
	}
	return fmt.Errorf("%q takes no codes: want %s, %s or %s", c.API, APICode2Session, APIOAuth2, APIPhoneNumber)
}

// redeem uses a code up for an account. It returns the errcode of the refusal, or
// 0; s.mu is held.
func (s *Sim) redeem(a *account, req *request) (*code, int) {
	now := time.Now()
	c, known := s.codes[req.Code]
	switch {
	case req.Code == "":
		return nil, 41008
	case !known || c.account != a || c.API != req.api:
		return nil, 40029
	case c.used:
		return nil, 40163
	case !now.Before(c.ends):
		return nil, 40029
	}
	if req.api != APIPhoneNumber {
		logins, known := a.logins[c.OpenID]
		if !known {
			logins = &window{}
			a.logins[c.OpenID] = logins
		}
		if logins.count(now, time.Minute) >= cmp.Or(a.LoginsPerMinute, defaultLoginsPerMinute) {
			return nil, 45011
		}
		*logins = append(*logins, now)
	}
	c.used = true
	return c, 0
}

// unionID returns a unionid that belongs to an openid.
func unionID(openid string) string {
	sum := sha256.Sum256([]byte(openid))
	return "o6_" + base64.RawURLEncoding.EncodeToString(sum[:])[:25]
}

// sameText compares in a time that does not tell where the texts differ.
func sameText(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
