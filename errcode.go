package wechat

import (
	"net/http"
	"time"
)

// class groups failures that call for the same reaction.
type class string

const (
	classTransient   class = "transient"           // WeChat is busy: it passes by itself
	classUnreachable class = "unreachable"         // no answer at all
	classAnswer      class = "undocumented answer" // an answer that WeChat does not document
	classCredentials class = "credentials"         // the appid or the secret is wrong
	classAdmission   class = "network admission"   // the caller's IP is not whitelisted
	classHuman       class = "human"               // an administrator has to confirm
	classAccount     class = "account"             // WeChat limits the account
	classQuota       class = "quota"               // WeChat's quota is used up
	classBug         class = "bug"                 // the request did not arrive as the engine sends it
	classCode        class = "code"                // the user's code is not good, or not good any more
	classUser        class = "user"                // WeChat does not let this user log in, or not now
	classToken       class = "rejected token"      // WeChat does not accept the account's token
	classStorage     class = "storage"             // Vault's storage failed
)

var classes = []class{
	classTransient, classUnreachable, classAnswer, classCredentials, classAdmission, classHuman, classAccount,
	classQuota, classBug, classCode, classUser, classToken, classStorage,
}

// backoff is how long the engine waits after a failure: first, then twice as
// long after each further failure that calls for the same, never longer than most.
// The zero backoff is of failures that concern one request only: nothing waits.
type backoff struct{ first, most time.Duration }

// No wait is longer than ten minutes: a call in ten minutes costs nothing, and a
// wait that outlives its reason is an outage.
var (
	backoffTransient = backoff{time.Second, time.Minute}
	backoffPerson    = backoff{30 * time.Second, 5 * time.Minute}
	backoffQuota     = backoff{time.Minute, 10 * time.Minute}
	backoffNone      = backoff{}
)

// after returns the wait that follows the n-th failure in a row, n from 1.
// A growing wait is shortened at random by up to a quarter, never below first,
// so that accounts that failed together do not come back together.
func (b backoff) after(n int) time.Duration {
	d := b.first
	for range n - 1 {
		if d *= 2; d >= b.most {
			d = b.most
			break
		}
	}
	if d > b.first {
		d = max(b.first, d-time.Duration(randomFraction()*float64(d/4)))
	}
	return d
}

// rule says what an errcode, or a failure without one, means and what follows.
type rule struct {
	class   class
	status  int // HTTP status of the answer where nothing else can be answered
	backoff backoff
	meaning string
	advice  string
}

// triesAgain ends an advice where the background takes care.
const triesAgain = "the engine tries again by itself"

// What a person does about the failures of one class.
const (
	adviceNothing   = "nothing: " + triesAgain
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

// api is one of WeChat's calls, under the name that metrics show.
type api string

const (
	apiStableToken  api = "stable_token"
	apiCode2Session api = "jscode2session"
	apiOAuth2       api = "oauth2"
	apiClearQuota   api = "clear_quota"
	apiTicket       api = "getticket"
)

var apis = []api{apiStableToken, apiCode2Session, apiOAuth2, apiClearQuota, apiTicket}

// WeChat's refusals for a quota that is used up.
const (
	errcodeQuota       = 45009 // the day's
	errcodeMinuteQuota = 45011
)

// errcodes holds every errcode that is known of any call, with what it means in
// stable_token. WeChat's errcodes are one numbering for all of its calls: what another
// call's own table below does not hold means there what it means here.
var errcodes = map[int]rule{
	-1:    {classTransient, http.StatusBadGateway, backoffTransient, "WeChat is busy", adviceNothing},
	40001: {classCredentials, http.StatusBadRequest, backoffPerson, "the secret is wrong", adviceSecret},
	40002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat did not accept grant_type", adviceRelay},
	40013: {classCredentials, http.StatusBadRequest, backoffPerson, "the appid is not valid", "write the right appid and its secret to the config path; it is case-sensitive: copy it exactly"},
	40014: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of an access token, and this call sends none", adviceRelay},
	40029: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of a user's code, and this call sends none", adviceRelay},
	40125: {classCredentials, http.StatusBadRequest, backoffPerson, "the secret is not valid", adviceSecret},
	40163: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of a user's code, and this call sends none", adviceRelay},
	40164: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	40226: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of a user's code, and this call sends none", adviceRelay},
	40243: {classCredentials, http.StatusBadRequest, backoffPerson, "the AppSecret is frozen", "unfreeze it in the account's console and wait ten minutes"},
	41002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no appid", adviceRelay},
	41004: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no secret", adviceRelay},
	41008: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of a user's code, and this call sends none", adviceRelay},
	42001: {classBug, http.StatusBadGateway, backoffPerson, "WeChat speaks of an access token, and this call sends none", adviceRelay},
	43002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no POST", adviceRelay},
	45009: {classQuota, http.StatusTooManyRequests, backoffQuota, "the account's daily quota is used up", "wait for the next day, or reset the quota with clear-quota or in the account's console"},
	45011: {classQuota, http.StatusTooManyRequests, backoffQuota, "the account's quota of this minute is used up", adviceNothing},
	45035: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	47001: {classBug, http.StatusBadGateway, backoffPerson, "WeChat could not read the request's body", adviceRelay},
	48001: {classAccount, http.StatusBadRequest, backoffPerson, "the account has no right to this API", adviceRights},
	48004: {classAccount, http.StatusBadRequest, backoffPerson, "the account may not use this API", adviceConsole},
	48006: {classQuota, http.StatusTooManyRequests, backoffQuota, "the ten clearings of this month are used up", "wait for the quota's own reset at midnight, or for the next month"},
	50002: {classAccount, http.StatusBadRequest, backoffPerson, "the account is limited", adviceConsole},
	50004: {classAccount, http.StatusBadRequest, backoffPerson, "the account is punished", adviceConsole},
	61004: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	89501: {classHuman, http.StatusBadRequest, backoffPerson, "an administrator has to confirm the caller's IP", adviceConfirm},
	89503: {classHuman, http.StatusBadRequest, backoffPerson, "an administrator has to confirm the caller's IP", adviceConfirm},
	89506: {classHuman, http.StatusBadRequest, backoffQuota, "an administrator refused the caller's IP twice; it is blocked for 24 hours", adviceTalk},
	89507: {classHuman, http.StatusBadRequest, backoffQuota, "an administrator refused the caller's IP; it is blocked for an hour", adviceTalk},
}

// ownErrcodes holds what an errcode means in one call, where that is not what it
// means in stable_token.
var ownErrcodes = map[api]map[int]rule{
	apiCode2Session: loginErrcodes("send the code that wx.login gave", "a web or app login's code belongs to oauth2/; if it is a mini program's, "+adviceRights),
	apiOAuth2:       loginErrcodes("send the code from the address to which WeChat redirected the user", "a mini program's code belongs to code2session/; if it is a web or app login's, "+adviceRights),
	apiTicket: {
		40001: {classToken, http.StatusBadGateway, backoffTransient, "WeChat did not accept the account's token", adviceReport},
		40014: {classToken, http.StatusBadGateway, backoffTransient, "WeChat did not accept the account's token", adviceReport},
		42001: {classToken, http.StatusBadGateway, backoffTransient, "the account's token has ended", adviceReport},
		45009: {classQuota, http.StatusTooManyRequests, backoffQuota, "the account's daily quota of ticket calls is used up", "wait for the next day, or reset the quota with clear-quota or in the account's console"},
		48001: {classAccount, http.StatusBadRequest, backoffPerson, "the account has no right to this API", adviceRights + ": tickets are for service accounts and for the others that WeChat has given the right"},
	},
}

// loginErrcodes are the errcodes of a login, with the advice for a code that WeChat did
// not see and for an account without the right.
func loginErrcodes(noCode, noRight string) map[int]rule {
	return map[int]rule{
		40029: {classCode, http.StatusBadRequest, backoffNone, "the code is not valid", adviceOtherCode},
		40163: {classCode, http.StatusBadRequest, backoffNone, "the code was used before", adviceLogin},
		40226: {classUser, http.StatusBadRequest, backoffNone, "WeChat holds this user for a risk and refuses the login", "turn the user away; there is nothing to mend"},
		41008: {classCode, http.StatusBadRequest, backoffNone, "WeChat saw no code", noCode},
		45011: {classUser, http.StatusTooManyRequests, backoffNone, "this user or this appid logs in more often than WeChat allows in a minute", "have the client wait a minute and log in again, with a new code; if many users meet it, the limit is the appid's: spread the logins"},
		48001: {classAccount, http.StatusBadRequest, backoffNone, "the account has no right to this API", noRight},
	}
}

// ruleOf says what an errcode means in a call, and whether it is documented.
func ruleOf(a api, errcode int) (rule, bool) {
	if r, ok := ownErrcodes[a][errcode]; ok {
		return r, true
	}
	r, ok := errcodes[errcode]
	return r, ok
}

// The failures that carry no documented errcode.
var (
	ruleUnreachable = rule{classUnreachable, http.StatusBadGateway, backoffTransient, "WeChat cannot be reached", "check the way from Vault to base_url (network, proxy_url, ca_pem); " + triesAgain}
	ruleUnavailable = rule{classTransient, http.StatusBadGateway, backoffTransient, "WeChat answered with a server error", adviceNothing}
	ruleAnswer      = rule{classAnswer, http.StatusBadGateway, backoffTransient, "WeChat's answer is not the documented one", "check that base_url and proxy_url lead to WeChat; " + triesAgain}
	ruleStorage     = rule{classStorage, http.StatusInternalServerError, backoffTransient, "Vault's storage failed", "check Vault's storage; " + triesAgain}
)

// unreachable is ruleUnreachable with the advice for one of its causes.
func unreachable(advice string) rule {
	r := ruleUnreachable
	r.advice = advice + "; " + triesAgain
	return r
}

// The causes for which WeChat cannot be reached. Each has one fixed phrase: to
// callers nothing is told of what the other side said. The server log has that.
var (
	causeNoName       = cause{"the host's name was not found", unreachable("check the host in base_url, or that in proxy_url, and the name resolution of Vault's host")}
	causeNoConnection = cause{"no connection", unreachable("check that Vault's host may connect to base_url, or to proxy_url")}
	causeProxy        = cause{"the proxy refused", unreachable("check proxy_url, its user and password, and that the proxy may connect to base_url")}
	causeNoTLS        = cause{"no TLS connection", unreachable("check that base_url speaks TLS with a certificate of its name, and ca_pem if its authority is not a public one")}
	causeTLSSilent    = cause{"the TLS handshake got no answer", unreachable("a middlebox on the way may drop large ClientHellos: set GODEBUG=tlsmlkem=0 in the environment of Vault, which makes them small, and restart it; check the way from Vault to base_url")}
	causeNoAnswer     = cause{"no answer in time", unreachable("check the way from Vault to base_url, and request_timeout")}
	causeCut          = cause{"the connection ended before the answer was complete", ruleUnreachable}
	causeNotHTTP      = cause{"it is not an HTTP response, or its headers are too large", ruleAnswer}
)

// cause is why there is no answer: a phrase for everybody, and what to do.
type cause struct {
	phrase string
	rule   rule
}
