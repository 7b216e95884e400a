package wechat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
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
	classStorage     class = "storage"             // Vault's storage failed
)

// backoff is how long the engine waits after a failure: first, then twice as
// long after each further failure that calls for the same, never longer than most.
type backoff struct{ first, most time.Duration }

var (
	backoffTransient = backoff{time.Second, time.Minute}
	backoffPerson    = backoff{30 * time.Second, 5 * time.Minute}
	backoffQuota     = backoff{time.Minute, 10 * time.Minute}
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
		d = max(b.first, d-rand.N(d/4)) //nolint:gosec // jitter needs no secrecy
	}
	return d
}

// rule says what an errcode, or a failure without one, means and what follows.
type rule struct {
	class   class
	status  int // HTTP status of the answer while no valid token is cached
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
	adviceRelay     = "check that base_url and proxy_url pass requests on unchanged; if they do, report a bug"
)

// errcodes holds every errcode that WeChat documents for stable_token. README
// shows the same table, and a test holds the two together.
var errcodes = map[int]rule{
	-1:    {classTransient, http.StatusBadGateway, backoffTransient, "WeChat is busy", adviceNothing},
	40001: {classCredentials, http.StatusBadRequest, backoffPerson, "the secret is wrong", adviceSecret},
	40002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat did not accept grant_type", adviceRelay},
	40013: {classCredentials, http.StatusBadRequest, backoffPerson, "the appid is not valid", "write the right appid, in the right case, and its secret to the config path"},
	40125: {classCredentials, http.StatusBadRequest, backoffPerson, "the secret is not valid", adviceSecret},
	40164: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	40243: {classCredentials, http.StatusBadRequest, backoffPerson, "the AppSecret is frozen", "unfreeze it in the account's console and wait ten minutes"},
	41002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no appid", adviceRelay},
	41004: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no secret", adviceRelay},
	43002: {classBug, http.StatusBadGateway, backoffPerson, "WeChat saw no POST", adviceRelay},
	45009: {classQuota, http.StatusTooManyRequests, backoffQuota, "the account's daily quota is used up", "wait for the next day, or reset the quota in the account's console"},
	45011: {classQuota, http.StatusTooManyRequests, backoffQuota, "the account's quota of this minute is used up", adviceNothing},
	45035: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	47001: {classBug, http.StatusBadGateway, backoffPerson, "WeChat could not read the request's body", adviceRelay},
	48004: {classAccount, http.StatusBadRequest, backoffPerson, "the account may not use this API", adviceConsole},
	50002: {classAccount, http.StatusBadRequest, backoffPerson, "the account is limited", adviceConsole},
	50004: {classAccount, http.StatusBadRequest, backoffPerson, "the account is punished", adviceConsole},
	61004: {classAdmission, http.StatusBadRequest, backoffPerson, "the caller's IP is not whitelisted", adviceWhitelist},
	89501: {classHuman, http.StatusBadRequest, backoffPerson, "an administrator has to confirm the caller's IP", adviceConfirm},
	89503: {classHuman, http.StatusBadRequest, backoffPerson, "an administrator has to confirm the caller's IP", adviceConfirm},
	89506: {classHuman, http.StatusBadRequest, backoffQuota, "an administrator refused the caller's IP twice; it is blocked for 24 hours", adviceTalk},
	89507: {classHuman, http.StatusBadRequest, backoffQuota, "an administrator refused the caller's IP; it is blocked for an hour", adviceTalk},
}

// The failures that carry no documented errcode.
var (
	ruleUnreachable = rule{classUnreachable, http.StatusBadGateway, backoffTransient, "WeChat cannot be reached", "check the way from Vault to base_url (network, proxy_url, ca_pem); " + triesAgain}
	ruleUnavailable = rule{classTransient, http.StatusBadGateway, backoffTransient, "WeChat answered with a server error", adviceNothing}
	ruleAnswer      = rule{classAnswer, http.StatusBadGateway, backoffTransient, "WeChat's answer is not the documented one", "check that base_url and proxy_url lead to WeChat; " + triesAgain}
	ruleStorage     = rule{classStorage, http.StatusInternalServerError, backoffTransient, "Vault's storage failed", "check Vault's storage; " + triesAgain}
)

// problem is one failed attempt to get a token. It is an error whose text may
// be shown to anybody: it holds neither a secret nor a token.
type problem struct {
	rule
	errcode int    // WeChat's errcode, 0 if there was none
	detail  string // the cause, or the errmsg of an undocumented errcode; scrubbed
	rid     string // WeChat's request ID, if it gave one
	ip      string // the caller's IP as WeChat saw it, if it named one
	local   bool   // the engine's own limit: WeChat was not asked
}

// noEffect reports whether it is certain that a forced call did nothing: WeChat
// refused it, or was not asked.
func (p *problem) noEffect() bool {
	if p == nil {
		return false
	}
	_, documented := errcodes[p.errcode]
	return p.local || documented && p.class != classTransient
}

// withoutRetryPromise returns err as it is told to somebody whose request the engine does not
// repeat by itself.
func withoutRetryPromise(err error) error {
	p := problemOf(err)
	if p == nil {
		return err
	}
	told := *p
	if told.advice == adviceNothing {
		told.advice = "try again in a minute"
	}
	told.advice = strings.TrimSuffix(told.advice, "; "+triesAgain)
	return &told
}

// problemOf returns the problem that err is, or nil.
func problemOf(err error) *problem {
	p, _ := errors.AsType[*problem](err)
	return p
}

// Error says what happened, as WeChat saw it, and what to do about it.
func (p *problem) Error() string { return p.message() + "; what to do: " + p.advice }

// message says what happened, without the advice.
func (p *problem) message() string {
	var b strings.Builder
	b.WriteString(p.meaning)
	if p.detail != "" {
		fmt.Fprintf(&b, ": %s", p.detail)
	}
	if p.errcode != 0 {
		fmt.Fprintf(&b, " (errcode %d", p.errcode)
		if p.ip != "" {
			fmt.Fprintf(&b, ", caller's IP %s", p.ip)
		}
		if p.rid != "" {
			fmt.Fprintf(&b, ", rid %s", p.rid)
		}
		b.WriteString(")")
	}
	return b.String()
}
