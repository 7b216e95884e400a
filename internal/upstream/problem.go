package upstream

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Problem is one failed call. It is an error whose text may be shown to anybody: it
// holds neither a secret nor a token nor a request ID, and nothing of what the other
// side said.
type Problem struct {
	Rule
	Errcode int    // of the answer, 0 if there was none
	Detail  string // the cause in fixed words
	IP      string // the caller's IP as WeChat saw it, if it named one

	// RID and Errmsg are WeChat's request ID and its words. With a token of the account
	// a request ID may open the record of a call, which holds the AppSecret: so they go
	// to the server log and to those who configure the account, see OperatorError. Both
	// are plain.
	RID    string
	Errmsg string

	// Cause is the text of the error below, if it is plain, or in what way an answer is
	// not the documented one: for the server log only. To a caller it could tell what
	// listens in Vault's network.
	Cause string

	// HadNoEffect is set if it is certain that the call did nothing: it was not sent, or
	// a gateway or the platform refused it.
	HadNoEffect bool

	// Local is set for the caller's own limits: no call was made.
	Local bool

	// AskedAt and NextAt are set in an answer from memory: when the last call was made, and
	// when the next one is.
	AskedAt, NextAt time.Time
}

// ProblemOf returns the problem that err is, or nil.
func ProblemOf(err error) *Problem {
	p, _ := errors.AsType[*Problem](err)
	return p
}

// NoEffect reports whether it is certain that a call which ended in err did nothing.
func NoEffect(err error) bool {
	p := ProblemOf(err)
	return p != nil && p.HadNoEffect
}

// Remembered is p as an answer from memory. One that looks fresh would have its reader
// believe that what was just mended did not help.
func (p *Problem) Remembered(asked, next time.Time) *Problem {
	told := *p
	told.AskedAt, told.NextAt = asked, next
	return &told
}

// WithoutRetryPromise returns err as it is told where the engine does not repeat the
// request by itself.
func WithoutRetryPromise(err error) error {
	p := ProblemOf(err)
	if p == nil {
		return err
	}
	told := *p
	if told.Advice == AdviceNothing {
		told.Advice = "try again in a minute"
	}
	told.Advice = strings.TrimSuffix(told.Advice, "; "+TriesAgain)
	return &told
}

// Error says what happened, as WeChat saw it, and what to do about it.
func (p *Problem) Error() string { return p.Message() + p.ending() }

// OperatorError is Error with WeChat's request ID and its own words, for callers who
// read no token.
func (p *Problem) OperatorError() string { return p.words(true) + p.ending() }

// Message says what happened, without the advice.
func (p *Problem) Message() string { return p.words(false) }

func (p *Problem) words(forOperator bool) string {
	var b strings.Builder
	b.WriteString(p.Meaning)
	if p.Detail != "" {
		fmt.Fprintf(&b, ": %s", p.Detail)
	}
	if p.Errcode == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, " (errcode %d", p.Errcode)
	if p.IP != "" {
		fmt.Fprintf(&b, ", caller's IP %s", p.IP)
	}
	if forOperator && p.RID != "" {
		fmt.Fprintf(&b, ", rid %s", p.RID)
	}
	if forOperator && p.Errmsg != "" {
		fmt.Fprintf(&b, ", errmsg %q", p.Errmsg)
	}
	b.WriteString(")")
	return b.String()
}

// ending is what follows the message: of an answer from memory the times, and the advice.
func (p *Problem) ending() string {
	advice := "; what to do: " + p.Advice
	if p.AskedAt.IsZero() {
		return advice
	}
	times := "; WeChat was last asked at %s, and is asked next at %s"
	if p.Class == ClassStorage {
		times = "; it was last tried at %s, and is tried next at %s"
	}
	return fmt.Sprintf(times, p.AskedAt.UTC().Format(time.RFC3339), p.NextAt.UTC().Format(time.RFC3339)) + advice
}

// LogFields is what the server log tells of the problem, as key-value pairs: all of it.
func (p *Problem) LogFields() []any {
	fields := []any{"class", string(p.Class), "message", p.Message()}
	if p.Errcode != 0 {
		fields = append(fields, "errcode", p.Errcode, "rid", p.RID, "errmsg", p.Errmsg)
	}
	if p.Cause != "" {
		fields = append(fields, "cause", p.Cause)
	}
	return fields
}
