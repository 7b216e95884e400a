package wechat

import (
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// session is what a mini program's login code was worth.
type session struct {
	openID     string
	unionID    string // "" if WeChat gave none
	sessionKey string
}

// userToken is what a web login's code was worth: the user's own tokens.
type userToken struct {
	openID       string
	unionID      string // "", like the next two, if WeChat gave none
	scope        string
	refreshToken string
	accessToken  string
	expiresIn    *int64 // seconds; nil, like the next, if WeChat gave none
	snapshotUser *int64
}

// secretFields are those of WeChat's answers that are only for the caller to whom the
// answer belongs.
var secretFields = []string{"access_token", "refresh_token", "session_key", "ticket", "openid", "unionid"}

// parseToken reads the answer of stable_token.
func parseToken(e upstream.Envelope) (kept.Grant, *problem) {
	got := kept.Grant{Life: maxLifetime}
	if p := e.Values(map[string]*string{"access_token": &got.Value}); p != nil {
		return got, p
	}
	expiresIn, _, ok := e.Number("expires_in")
	switch {
	case got.Value == "":
		return got, upstream.Undocumented("it holds no access_token")
	case !ok:
		return got, upstream.Undocumented("expires_in is not a whole number")
	case expiresIn <= 0:
		return got, upstream.Undocumented("expires_in is %d", expiresIn)
	case expiresIn < int64(maxLifetime/time.Second):
		got.Life = time.Duration(expiresIn) * time.Second
	}
	return got, nil
}

// parseSession reads the answer of jscode2session.
func parseSession(e upstream.Envelope) (*session, *problem) {
	got := &session{}
	p := e.Values(map[string]*string{"openid": &got.openID, "unionid": &got.unionID, "session_key": &got.sessionKey})
	switch {
	case p != nil:
		return nil, p
	case got.openID == "":
		return nil, upstream.Undocumented("it holds no openid")
	case got.sessionKey == "":
		return nil, upstream.Undocumented("it holds no session_key")
	}
	return got, nil
}

// parseUserToken reads the answer of sns/oauth2/access_token.
func parseUserToken(e upstream.Envelope) (*userToken, *problem) {
	got := &userToken{}
	p := e.Values(map[string]*string{
		"openid": &got.openID, "unionid": &got.unionID, "scope": &got.scope,
		"refresh_token": &got.refreshToken, "access_token": &got.accessToken,
	})
	switch {
	case p != nil:
		return nil, p
	case got.openID == "":
		return nil, upstream.Undocumented("it holds no openid")
	case got.accessToken == "":
		return nil, upstream.Undocumented("it holds no access_token")
	}
	for field, value := range map[string]**int64{"expires_in": &got.expiresIn, "is_snapshotuser": &got.snapshotUser} {
		switch n, given, ok := e.Number(field); {
		case !ok:
			return nil, upstream.Undocumented("%s is not a whole number", field)
		case given:
			*value = &n
		}
	}
	if got.expiresIn != nil && *got.expiresIn <= 0 {
		return nil, upstream.Undocumented("expires_in is %d", *got.expiresIn)
	}
	return got, nil
}

// parseTicket reads the answer of getticket. Its expires_in says nothing: it is always
// the same.
func parseTicket(e upstream.Envelope) (kept.Grant, *problem) {
	got := kept.Grant{Life: ticketGrace}
	if p := e.Values(map[string]*string{"ticket": &got.Value}); p != nil {
		return got, p
	}
	if got.Value == "" {
		return got, upstream.Undocumented("it holds no ticket")
	}
	return got, nil
}

// parseCleared reads the answer of clear_quota, which has to say that it succeeded.
func parseCleared(e upstream.Envelope) (struct{}, *problem) {
	if _, given, _ := e.Number("errcode"); !given {
		return struct{}{}, upstream.Undocumented("it holds no errcode")
	}
	return struct{}{}, nil
}
