package upstream

import (
	"net/http"
	"time"
)

// Class groups failures that call for the same reaction.
type Class string

// The classes of failures.
const (
	ClassTransient   Class = "transient"           // WeChat is busy: it passes by itself
	ClassUnreachable Class = "unreachable"         // no answer at all
	ClassAnswer      Class = "undocumented answer" // an answer that WeChat does not document
	ClassCredentials Class = "credentials"         // the appid or the secret is wrong
	ClassAdmission   Class = "network admission"   // the caller's IP is not whitelisted
	ClassHuman       Class = "human"               // an administrator has to confirm
	ClassAccount     Class = "account"             // WeChat limits the account
	ClassQuota       Class = "quota"               // WeChat's quota is used up
	ClassBug         Class = "bug"                 // the request did not arrive as it was sent
	ClassCode        Class = "code"                // the user's code is not good, or not good any more
	ClassUser        Class = "user"                // WeChat does not let this user log in, or not now
	ClassToken       Class = "rejected token"      // WeChat does not accept the account's token
	ClassStorage     Class = "storage"             // the caller's storage failed
)

// Classes are all of them.
var Classes = []Class{
	ClassTransient, ClassUnreachable, ClassAnswer, ClassCredentials, ClassAdmission, ClassHuman, ClassAccount,
	ClassQuota, ClassBug, ClassCode, ClassUser, ClassToken, ClassStorage,
}

// Rule says what a failure means and what follows.
type Rule struct {
	Class   Class
	Status  int // HTTP status of the answer where nothing else can be answered
	Backoff Backoff
	Meaning string
	Advice  string
}

// The rules of answers that carry no documented errcode.
var (
	RuleUnavailable = Rule{ClassTransient, http.StatusBadGateway, BackoffTransient, "WeChat answered with a server error", AdviceNothing}
	RuleAnswer      = Rule{ClassAnswer, http.StatusBadGateway, BackoffTransient, "WeChat's answer is not the documented one", "check that base_url and proxy_url lead to WeChat; " + TriesAgain}
)

// TriesAgain ends an advice where the background takes care.
const TriesAgain = "the engine tries again by itself"

// AdviceNothing is for what passes by itself.
const AdviceNothing = "nothing: " + TriesAgain

// Backoff is how long to wait after a failure: First, then twice as long after each
// further failure that calls for the same, never longer than Most. The zero Backoff is
// of failures that concern one request only: nothing waits.
type Backoff struct{ First, Most time.Duration }

// BackoffTransient is for what passes by itself.
var BackoffTransient = Backoff{time.Second, time.Minute}

// After returns the wait that follows the n-th failure in a row, n from 1. random, from
// 0 up to 1, shortens a growing wait by up to a quarter, never below First, so that
// accounts that failed together do not come back together.
func (b Backoff) After(n int, random float64) time.Duration {
	d := b.First
	for range n - 1 {
		if d *= 2; d >= b.Most {
			d = b.Most
			break
		}
	}
	if d > b.First {
		d = max(b.First, d-time.Duration(random*float64(d/4)))
	}
	return d
}
