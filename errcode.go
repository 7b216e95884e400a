package wechat

import (
	"net/http"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

type (
	problem = upstream.Problem
	rule    = upstream.Rule
	class   = upstream.Class
	backoff = upstream.Backoff
)

// problemOf returns the problem that err is, or nil.
func problemOf(err error) *problem { return upstream.ProblemOf(err) }

// No wait is longer than ten minutes: a call in ten minutes costs nothing, and a
// wait that outlives its reason is an outage.
var (
	backoffPerson = backoff{First: 30 * time.Second, Most: 5 * time.Minute}
	backoffQuota  = backoff{First: time.Minute, Most: 10 * time.Minute}
	backoffNone   = backoff{}
)

// What a person does about the failures of one class.
const (
	adviceSecret    = "write the account's current AppSecret to its config path"
	adviceWhitelist = "add this IP to the account's IP whitelist and wait some minutes, or send the calls through a whitelisted egress with proxy_url"
	adviceConfirm   = "have the account's administrator confirm this IP in WeChat"
	adviceTalk      = "talk to the account's administrator"
	adviceConsole   = "see the notices in the account's console"
	adviceRights    = "see the account's API permissions in its console"
	adviceRelay     = "check that base_url and proxy_url pass requests on unchanged; if they do, report a bug"
	adviceLogin     = "have the client log in again and send the new code"
	adviceOtherCode = "have the client log in again and send the new code; if that fails too, check that the code is of this account's appid"
	adviceReport    = "nothing: the token is reported to the engine, which asks for another one if need be"
)

// WeChat's calls, under the names that metrics show.
const (
	apiStableToken  = "stable_token"
	apiCode2Session = "jscode2session"
	apiOAuth2       = "oauth2"
	apiClearQuota   = "clear_quota"
	apiTicket       = "getticket"
)

var apis = []string{apiStableToken, apiCode2Session, apiOAuth2, apiClearQuota, apiTicket}

// WeChat's refusals for a quota that is used up.
const (
	errcodeQuota       = 45009 // the day's
	errcodeMinuteQuota = 45011
)

// person is the rule of what has to be mended by a person.
func person(class class, meaning, advice string) rule {
	return rule{Class: class, Status: http.StatusBadRequest, Backoff: backoffPerson, Meaning: meaning, Advice: advice}
}

// blocked is the rule of an IP that an administrator refused: it is not admitted for hours.
func blocked(meaning string) rule {
	return rule{Class: upstream.ClassHuman, Status: http.StatusBadRequest, Backoff: backoffQuota, Meaning: meaning, Advice: adviceTalk}
}

// rejected is the rule of the account's token that WeChat did not accept.
func rejected(meaning string) rule {
	return rule{Class: upstream.ClassToken, Status: http.StatusBadGateway, Backoff: upstream.BackoffTransient, Meaning: meaning, Advice: adviceReport}
}

// bug is the rule of a request that did not arrive as the engine sends it.
func bug(meaning string) rule {
	return rule{Class: upstream.ClassBug, Status: http.StatusBadGateway, Backoff: backoffPerson, Meaning: meaning, Advice: adviceRelay}
}

// quota is the rule of a quota that is used up.
func quota(meaning, advice string) rule {
	return rule{Class: upstream.ClassQuota, Status: http.StatusTooManyRequests, Backoff: backoffQuota, Meaning: meaning, Advice: advice}
}

// single is the rule of what concerns one request only.
func single(class class, meaning, advice string) rule {
	return rule{Class: class, Status: http.StatusBadRequest, Backoff: backoffNone, Meaning: meaning, Advice: advice}
}

// errcodes holds every errcode that is known of any call, with what it means in
// stable_token. WeChat's errcodes are one numbering for all of its calls: what another
// call's own table below does not hold means there what it means here.
var errcodes = map[int]rule{
	-1:    {Class: upstream.ClassTransient, Status: http.StatusBadGateway, Backoff: upstream.BackoffTransient, Meaning: "WeChat is busy", Advice: upstream.AdviceNothing},
	40001: person(upstream.ClassCredentials, "the secret is wrong", adviceSecret),
	40002: bug("WeChat did not accept grant_type"),
	40013: person(upstream.ClassCredentials, "the appid is not valid", "write the right appid and its secret to the config path; it is case-sensitive: copy it exactly"),
	40014: bug("WeChat speaks of an access token, and this call sends none"),
	40029: bug("WeChat speaks of a user's code, and this call sends none"),
	40125: person(upstream.ClassCredentials, "the secret is not valid", adviceSecret),
	40163: bug("WeChat speaks of a user's code, and this call sends none"),
	40164: person(upstream.ClassAdmission, "the caller's IP is not whitelisted", adviceWhitelist),
	40226: bug("WeChat speaks of a user's code, and this call sends none"),
	40243: person(upstream.ClassCredentials, "the AppSecret is frozen", "unfreeze it in the account's console and wait ten minutes"),
	41002: bug("WeChat saw no appid"),
	41004: bug("WeChat saw no secret"),
	41008: bug("WeChat speaks of a user's code, and this call sends none"),
	42001: bug("WeChat speaks of an access token, and this call sends none"),
	43002: bug("WeChat saw no POST"),
	45009: quota("the account's daily quota is used up", "wait for the next day, or reset the quota with clear-quota or in the account's console"),
	45011: quota("the account's quota of this minute is used up", upstream.AdviceNothing),
	45035: person(upstream.ClassAdmission, "the caller's IP is not whitelisted", adviceWhitelist),
	47001: bug("WeChat could not read the request's body"),
	48001: person(upstream.ClassAccount, "the account has no right to this API", adviceRights),
	48004: person(upstream.ClassAccount, "the account may not use this API", adviceConsole),
	48006: quota("the ten clearings of this month are used up", "wait for the quota's own reset at midnight, or for the next month"),
	50002: person(upstream.ClassAccount, "the account is limited", adviceConsole),
	50004: person(upstream.ClassAccount, "the account is punished", adviceConsole),
	61004: person(upstream.ClassAdmission, "the caller's IP is not whitelisted", adviceWhitelist),
	89501: person(upstream.ClassHuman, "an administrator has to confirm the caller's IP", adviceConfirm),
	89503: person(upstream.ClassHuman, "an administrator has to confirm the caller's IP", adviceConfirm),
	89506: blocked("an administrator refused the caller's IP twice; it is blocked for 24 hours"),
	89507: blocked("an administrator refused the caller's IP; it is blocked for an hour"),
}

// ownErrcodes holds what an errcode means in one call, where that is not what it
// means in stable_token.
var ownErrcodes = map[string]map[int]rule{
	apiCode2Session: loginErrcodes("send the code that wx.login gave", "a web or app login's code belongs to oauth2/; if it is a mini program's, "+adviceRights),
	apiOAuth2:       loginErrcodes("send the code from the address to which WeChat redirected the user", "a mini program's code belongs to code2session/; if it is a web or app login's, "+adviceRights),
	apiTicket: {
		40001: rejected("WeChat did not accept the account's token"),
		40014: rejected("WeChat did not accept the account's token"),
		42001: rejected("the account's token has ended"),
		45009: quota("the account's daily quota of ticket calls is used up", "wait for the next day, or reset the quota with clear-quota or in the account's console"),
		48001: person(upstream.ClassAccount, "the account has no right to this API", adviceRights+": tickets are for service accounts and for the others that WeChat has given the right"),
	},
}

// loginErrcodes are the errcodes of a login, with the advice for a code that WeChat did
// not see and for an account without the right.
func loginErrcodes(noCode, noRight string) map[int]rule {
	return map[int]rule{
		40029: single(upstream.ClassCode, "the code is not valid", adviceOtherCode),
		40163: single(upstream.ClassCode, "the code was used before", adviceLogin),
		40226: single(upstream.ClassUser, "WeChat holds this user for a risk and refuses the login", "turn the user away; there is nothing to mend"),
		41008: single(upstream.ClassCode, "WeChat saw no code", noCode),
		45011: {Class: upstream.ClassUser, Status: http.StatusTooManyRequests, Backoff: backoffNone, Meaning: "this user or this appid logs in more often than WeChat allows in a minute", Advice: "have the client wait a minute and log in again, with a new code; if many users meet it, the limit is the appid's: spread the logins"},
		48001: single(upstream.ClassAccount, "the account has no right to this API", noRight),
	}
}

// ruleOf says what an errcode means in a call, and whether it is documented.
func ruleOf(a string, errcode int) (rule, bool) {
	if r, ok := ownErrcodes[a][errcode]; ok {
		return r, true
	}
	r, ok := errcodes[errcode]
	return r, ok
}

// ruleStorage is of what Vault's storage did not take or give.
var ruleStorage = rule{
	Class: upstream.ClassStorage, Status: http.StatusInternalServerError, Backoff: upstream.BackoffTransient,
	Meaning: "Vault's storage failed", Advice: "check Vault's storage; " + upstream.TriesAgain,
}

// ownFault reports whether a failure may be that of one name's credentials or way: then
// another name's may do. The others are the platform's.
func ownFault(p *problem) bool {
	switch p.Class {
	case upstream.ClassTransient, upstream.ClassQuota, upstream.ClassAccount, upstream.ClassStorage:
		return false
	}
	return true
}

// isQuota reports whether p, which may be nil, is that the daily quota is used up.
func isQuota(p *problem) bool { return p != nil && p.Errcode == errcodeQuota }
