package wechat

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// problem is one failed attempt to call WeChat. It is an error whose text may be
// shown to anybody: it holds neither a secret nor a token nor a rid, and nothing
// of what the other side said.
type problem struct {
	rule
	errcode int    // WeChat's errcode, 0 if there was none
	detail  string // the cause in the engine's own words
	ip      string // the caller's IP as WeChat saw it, if it named one

	// rid and errmsg are WeChat's request ID and its words. With a token of the
	// account a rid may open the record of a call, which holds the AppSecret: so
	// they go to the server log and to those who configure the account, see
	// operatorError. Both are quotable.
	rid    string
	errmsg string

	// cause is the text of the error below, if it is quotable, or in what way an answer
	// is not the documented one: for the server log only. To a caller it could tell what
	// listens in Vault's network.
	cause string

	// hadNoEffect is set if it is certain that the call did nothing at WeChat: a
	// forced refresh then left the token as it was.
	hadNoEffect bool

	// local is set for the engine's own limits: WeChat was not asked.
	local bool

	// asked and next are set in an answer from memory: when WeChat was last asked, and
	// when it is asked next.
	asked, next time.Time
}

// remembered is p as an answer from memory. One that looks fresh would have its reader
// believe that what was just mended did not help.
func (p *problem) remembered(asked, next time.Time) *problem {
	told := *p
	told.asked, told.next = asked, next
	return &told
}

// ending is what follows the message: of an answer from memory the times, and the advice.
func (p *problem) ending() string {
	advice := "; what to do: " + p.advice
	if p.asked.IsZero() {
		return advice
	}
	times := "; WeChat was last asked at %s, and is asked next at %s"
	if p.class == classStorage {
		times = "; it was last tried at %s, and is tried next at %s"
	}
	return fmt.Sprintf(times, timestamp(p.asked), timestamp(p.next)) + advice
}

// noEffect reports whether it is certain that the call did nothing at WeChat: it
// was not sent, a gateway or WeChat refused it, or the engine's own limits did.
// The nil problem is a call that succeeded.
func (p *problem) noEffect() bool { return p != nil && p.hadNoEffect }

// isQuota reports whether p, which may be nil, is that the daily quota is used up.
func isQuota(p *problem) bool { return p != nil && p.errcode == errcodeQuota }

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
func (p *problem) Error() string { return p.message() + p.ending() }

// message says what happened, without the advice.
func (p *problem) message() string { return p.words(false) }

// operatorError is Error with WeChat's request ID and its own words: for the
// answers of config/, rotate/ and clear-quota/, whose callers read no token.
func (p *problem) operatorError() string { return p.operatorMessage() + p.ending() }

// operatorMessage is message with WeChat's request ID and its own words.
func (p *problem) operatorMessage() string { return p.words(true) }

func (p *problem) words(forOperator bool) string {
	var b strings.Builder
	b.WriteString(p.meaning)
	if p.detail != "" {
		fmt.Fprintf(&b, ": %s", p.detail)
	}
	if p.errcode == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, " (errcode %d", p.errcode)
	if p.ip != "" {
		fmt.Fprintf(&b, ", caller's IP %s", p.ip)
	}
	if forOperator && p.rid != "" {
		fmt.Fprintf(&b, ", rid %s", p.rid)
	}
	if forOperator && p.errmsg != "" {
		fmt.Fprintf(&b, ", errmsg %q", p.errmsg)
	}
	b.WriteString(")")
	return b.String()
}

// logFields is what the server log tells of the problem, as key-value pairs: all
// of it.
func (p *problem) logFields() []any {
	fields := []any{"class", string(p.class), "message", p.message()}
	if p.errcode != 0 {
		fields = append(fields, "errcode", p.errcode, "rid", p.rid, "errmsg", p.errmsg)
	}
	if p.cause != "" {
		fields = append(fields, "cause", p.cause)
	}
	return fields
}
