package wechatsim

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
)

// userTokenSeconds is the life of a user's access token.
const userTokenSeconds = 7200

// code2Session logs in a user of a mini program.
func (s *Sim) code2Session(req *request) (_ answer, issued bool) {
	c, refusal := s.exchange(req)
	if refusal == 0 && c.Risky {
		refusal = 40226
	}
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails, by its documentation
	ans := answered(
		field{"session_key", base64.StdEncoding.EncodeToString(key[:])},
		field{"openid", c.OpenID},
	)
	if c.account.Bound {
		ans.set("unionid", c.UnionID)
	}
	return ans, true
}

// oauth2 logs in a user in WeChat's browser, on a web site or in a mobile app.
func (s *Sim) oauth2(req *request) (_ answer, issued bool) {
	c, refusal := s.exchange(req)
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	ans := answered(
		field{"access_token", randomToken(96)},
		field{"expires_in", userTokenSeconds},
		field{"refresh_token", randomToken(96)},
		field{"openid", c.OpenID},
		field{"scope", c.Scope},
	)
	if c.Snapshot {
		ans.set("is_snapshotuser", 1)
	}
	if c.Scope == "snsapi_userinfo" {
		ans.set("unionid", c.UnionID)
	}
	return ans, true
}

// exchange uses up the code of a call that carries credentials. It returns the
// errcode of the refusal, or 0; s.mu is held.
func (s *Sim) exchange(req *request) (*code, int) {
	if req.method != http.MethodGet {
		return nil, 43001
	}
	a, refusal := s.admit(req.AppID, req.Secret, req.ip)
	switch {
	case refusal != 0:
		return nil, refusal
	case req.Code != "" && req.GrantType != "authorization_code":
		return nil, 40002
	}
	return s.redeem(a, req)
}
