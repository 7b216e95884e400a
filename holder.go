package wechat

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
)

var (
	errUnmounted = errors.New("the mount is being closed")
	errChanged   = errors.New("the configuration of the account was changed meanwhile: try again")
)

// common is what all accounts of a mount have in common.
type common struct {
	log     hclog.Logger
	client  *client
	metrics *metrics
	events  *events
	guards  *guards

	// writable tells whether this node may write to storage. A node that may not makes no
	// calls either: it could not keep what they bring.
	writable func() bool

	// ctx ends when the mount does, and with it every call to WeChat.
	ctx context.Context

	schedule *wake.Schedule
	busy     sync.WaitGroup // what runs in the background
}

// lockPatience is how long an operator's request waits for a holder's lock: as long as the
// longest call that may be under way.
const lockPatience = 2 * maxRequestTimeout

// ruleBusy is what a reader is told whose patience ended before another's call did.
var ruleBusy = rule{
	Class: upstream.ClassTransient, Status: http.StatusBadGateway, Backoff: upstream.BackoffTransient,
	Meaning: "a call for this token is still under way, and no token of before is handed out", Advice: "try again in some seconds",
}

// holder holds one credential for all names whose accounts have the same identity at the
// platform. It has one lock, one state and one record in storage.
//
// The lock is held for each call to the issuer and each write of the record. So at most one
// call for a credential is in flight, whatever caused it, and the record changes as the
// calls end.
//
// A reader takes no lock. It loads the state and asks whether the credential is servable at
// this moment. A forced call publishes a state in doubt before it is sent, and from then on
// no reader gets the token of before.
type holder struct {
	*common
	platform *platform
	identity string // the same for all accounts at the holder
	key      string // of the record
	issuer   *issuer
	slot     slot    // of the issuer, and of the accounts' failures
	parent   *holder // of what this credential is derived from; nil for a token

	// prepare returns what a call with the account's credentials takes. For a derived
	// credential that is the parent's value, and another one than rejected.
	prepare func(ctx context.Context, s logical.Storage, a *account, rejected string) (input, error)

	lock  *semaphore.Weighted
	state atomic.Pointer[state] // nil until it was loaded; stored under lock, read without

	// heard is the latest answer that waits for the lock, or came of a trial. If it shows that
	// the credential was replaced from outside, no reader gets that from then on.
	heard atomic.Pointer[heard]

	// The lock guards what follows.
	attempt *attempt  // the last forced call; nil if there was none since the start
	reread  bool      // the record was read again after the first answer, see lookAgain
	spaced  time.Time // no forced call is made before this, by the steady clock

	// last is the account whose credentials the issuer accepted last. The background tries
	// it first: its siblings may have a secret that was reset.
	last atomic.Pointer[account]

	// gone is set when the last name has left. Nothing is stored from then on.
	gone atomic.Bool

	// pursuit is how far the pending leak response is; nil if none is.
	pursuit atomic.Pointer[pursuit]

	// retime says that an account's sync_interval was changed. The one that holds the lock
	// sets the comparison anew when it releases it: a change of the configuration waits for
	// no call.
	retime atomic.Bool

	slow atomic.Bool // the last call took slowCall or longer, and may have failed

	// used is when a reader last used the credential, in seconds of Unix time, to within
	// useGrain. Were it noted at each page view, processors would wait for one another.
	used atomic.Int64

	// changes counts what other nodes changed in storage. A state that was read before the
	// last change is stale.
	changes atomic.Uint64

	derived [maxSlots]atomic.Pointer[holder] // those in use

	// coming counts the doors that are about to bring an account, or may bring theirs back
	// after a change that fails. Meanwhile the holder stays in memory. keeper.mu guards it.
	coming int

	// present are the accounts of this identity, accepted or not, sorted by name. keeper.mu
	// is held to replace the list. It is read without.
	present atomic.Pointer[[]*account]

	job wake.Job
}

const useGrain = time.Minute

// heard is an answer that is not yet in the state. It counts until the state has one that was
// asked for later.
type heard struct {
	kept.Grant
	policy kept.Policy
}

// newHolder makes the holder of one credential. It knows nothing before load.
func newHolder(c *common, p *platform, identity string, of slot) *holder {
	h := &holder{
		common: c, platform: p, identity: identity, key: p.recordKey(of, identity),
		issuer: p.issuers[of], slot: of, lock: semaphore.NewWeighted(1),
	}
	h.setPresent(nil)
	return h
}

// id is what the registry knows the holder of a token by.
func (h *holder) id() string { return holderID(h.platform, h.identity) }

func holderID(p *platform, identity string) string { return p.name + "/" + identity }

// share makes these the accounts at the holder. They are sorted by name.
func (h *holder) setPresent(with []*account) { h.present.Store(&with) }

// account is a configured name as it was read from storage, at the holder of its token.
// Each change of the configuration makes another one. A call in progress then finds its
// account replaced, and notes nothing that counts.
type account struct {
	*common
	name     string
	cfg      *config
	holder   *holder
	since    time.Time // by the steady clock
	moved    *pursuit  // of config.Leak, from before the account moved; nil after a start
	replaced atomic.Bool

	// failures are the last attempts with the account's credentials, nil for one that did
	// not fail. A failure belongs to the name, a success to the holder: one name's wrong
	// secret takes the token from no other. They are stored under the lock of the
	// credential's holder, or under the door's before the account is admitted, and read
	// without.
	failures [maxSlots]atomic.Pointer[failure]
}

// newAccount makes an account of a configuration at its holder. No door leads to it yet, and it
// is not among the holder's accounts before show.
func newAccount(c *common, name string, cfg *config, h *holder) *account {
	return &account{common: c, name: name, cfg: cfg, holder: h, since: time.Now()}
}

// asReader is the patience of a reader: the request_timeout of its account.
const asReader time.Duration = 0

// within is how long a caller with this patience waits for a lock. a may be nil, of a name
// that is not in memory.
func (a *account) within(patience time.Duration) time.Duration {
	switch {
	case patience != asReader:
		return patience
	case a == nil:
		return maxRequestTimeout
	}
	return max(a.cfg.RequestTimeout, time.Second)
}

// inherit takes over the failures of the account that this one replaces, as far as they
// still hold.
func (a *account) inherit(old *account, holds func(*problem) bool) {
	for i := range a.failures {
		if f := old.failures[i].Load(); f != nil && holds(f.problem) {
			a.failures[i].Store(f)
		}
	}
}

// admitted reports whether the issuer has accepted credentials of the account. Only then
// does it share the token: an AppID is public, and to configure one proves nothing.
func (a *account) admitted() bool { return a.holder.state.Load().has(a.name, a.cfg) }

// failed notes that an attempt failed, and returns why. The failure is noted for every
// account that would fail for the same reason, so that ten names of an appid do not ask a
// platform that is down ten times. The caller holds the lock that guards the failures.
func (a *account) failed(h *holder, err error, begun kept.Moment) error {
	p := asProblem(err)
	_, ofParent := errors.AsType[*parentError](err)
	f := a.failures[h.slot].Load().after(p, begun, moment())
	if f.Derived = ofParent; ofParent {
		f.Next = latest(p.NextAt, f.At.Add(kept.RetryTTL)) // the parent's own backoff decides
	}
	a.failures[h.slot].Store(f)
	for _, other := range h.accounts() {
		if a.failsFor(other, p, begun) {
			other.failures[h.slot].Store(f)
		}
	}
	if h.parent == nil {
		a.sendFailure(p)
	}
	if !ofParent { // the parent's failure is in the log already
		a.log.Warn("no "+h.issuer.credential+" from "+h.platform.title, append([]any{
			"account", a.name, "appid", a.cfg.AppID, "failures", f.Count, "next_attempt", timestamp(f.Next),
		}, p.LogFields()...)...)
	}
	return p
}

// failsFor reports whether the failure of an attempt of the account is noted for the other. An
// account that was written since is tried itself.
func (a *account) failsFor(other *account, p *problem, begun kept.Moment) bool {
	if other == a || a.replaced.Load() || !begun.Steady.After(other.since) {
		return false
	}
	return a.admitted() && other.admitted() && a.shares(other, p)
}

// shares reports whether what the account failed at would fail for the other as well: the
// platform is at fault, or the way that both go.
func (a *account) shares(other *account, p *problem) bool {
	ofWay := p.Class == upstream.ClassUnreachable || p.Class == upstream.ClassAnswer
	return !ownFault(p) || ofWay && a.cfg.way() == other.cfg.way()
}

// parentError says that a credential was not asked for, because there is no parent to
// derive it from.
type parentError struct{ error }

func (e *parentError) Unwrap() error { return e.error }

// sendFailure sends the event of an attempt that failed.
func (a *account) sendFailure(p *problem) {
	more := []string{"class", string(p.Class)}
	if p.Errcode != 0 {
		more = append(more, "errcode", strconv.Itoa(p.Errcode))
	}
	a.events.send(eventRefreshFail, statusPrefix, a.name, more...)
}

// acquire takes the lock, for which the caller waits no longer than patience. A release has
// to follow.
func (h *holder) acquire(ctx context.Context, patience time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch err := h.lock.Acquire(waiting, 1); {
	case ctx.Err() != nil:
		if err == nil {
			h.release()
		}
		return ctx.Err()
	case err != nil:
		return &problem{Rule: ruleBusy}
	case h.gone.Load():
		h.lock.Release(1)
		return errChanged
	}
	return nil
}

// tryAcquire is acquire for a caller that must not wait.
func (h *holder) tryAcquire() bool {
	if !h.lock.TryAcquire(1) {
		return false
	}
	if h.gone.Load() {
		h.lock.Release(1)
		return false
	}
	return true
}

// release gives the lock back and sets when the background looks at the holder next. A
// change of sync_interval may come at any moment, so it looks for one again afterwards.
func (h *holder) release() {
	for {
		if h.retime.Swap(false) {
			h.setComparison()
		}
		h.lock.Release(1)
		if !h.retime.Load() || !h.lock.TryAcquire(1) {
			break
		}
	}
	h.reschedule()
}

// setComparison sets the next comparison by the policy of now. The caller holds the lock.
func (h *holder) setComparison() {
	st := h.state.Load()
	if st == nil || st.Value == "" {
		return
	}
	next := *st
	next.Reschedule(h.policy(nil), moment(), randomFraction())
	h.state.Store(&next)
}

// fresh returns the state, nil if it has to be loaded: nothing was read yet, or another
// node has changed storage since.
func (h *holder) fresh() *state {
	if st := h.state.Load(); st != nil && st.readAt == h.changes.Load() {
		return st
	}
	return nil
}

// policy is the issuer's for the names that share the credential. The shortest
// sync_interval of theirs counts. accepted is the account that the issuer has just
// accepted, and that is not yet in the state; it may be nil.
func (h *holder) policy(accepted *account) kept.Policy {
	var all kept.Policy
	st := h.root().state.Load()
	for _, a := range h.accounts() {
		if st != nil && !st.has(a.name, a.cfg) && (accepted == nil || a.name != accepted.name) {
			continue
		}
		p := h.issuer.policy(a.cfg)
		if all.Compare == 0 || p.Compare > 0 && p.Compare < all.Compare {
			all = p
		}
	}
	if all.Life == 0 {
		all = h.issuer.policy(newConfig()) // no name is loaded yet
	}
	return all
}

// accounts returns those at the holder, in the order in which the background tries their
// credentials: the account that the issuer accepted last comes first.
func (h *holder) accounts() []*account {
	all, last := *h.root().present.Load(), h.root().last.Load()
	first := slices.IndexFunc(all, func(a *account) bool { return last != nil && a.name == last.name })
	if first <= 0 {
		return all
	}
	return slices.Concat(all[first:first+1], all[:first], all[first+1:])
}

// family is the holder, and those of what is derived from its credential.
func (h *holder) family() []*holder {
	all := []*holder{h}
	for i := range h.derived {
		if t := h.derived[i].Load(); t != nil {
			all = append(all, t)
		}
	}
	return all
}

// root is the holder of the token from which the credential is derived.
func (h *holder) root() *holder {
	if h.parent != nil {
		return h.parent.root()
	}
	return h
}

// current returns the state as it is known now, nil if it has to be loaded.
func (h *holder) current(now kept.Moment) *state {
	st := h.fresh().at(now)
	// Of two answers that crossed, it is not known which is the later one.
	if g := h.heard.Load(); g != nil && st != nil && st.Doubted.IsZero() && !st.Answered.After(g.Asked.Wall) && st.replacedOutside(g.policy, g.Grant) {
		next := *st
		next.Doubted = g.Asked.Wall
		return &next
	}
	return st
}

// hear publishes an answer to the account before it is in the state. The caller need not hold
// the lock.
func (h *holder) hear(a *account, g kept.Grant) {
	next := &heard{g, h.issuer.policy(a.cfg)}
	for {
		before := h.heard.Load()
		if before != nil && before.Asked.Steady.After(g.Asked.Steady) {
			return
		}
		if h.heard.CompareAndSwap(before, next) {
			h.reschedule()
			return
		}
	}
}

// done says that an answer is in the state.
func (h *holder) done(g kept.Grant) {
	if before := h.heard.Load(); before != nil && !before.Asked.Steady.After(g.Asked.Steady) {
		h.heard.CompareAndSwap(before, nil)
	}
}

// admitted returns the names that share the token in this state, sorted.
func (h *holder) admitted(st *state) []string {
	var names []string
	for _, a := range *h.present.Load() {
		if st.has(a.name, a.cfg) {
			names = append(names, a.name)
		}
	}
	return names
}

// touch notes that a reader uses the credential. After a long rest that wakes the
// background, which leaves idle tickets alone.
func (h *holder) touch(now time.Time) {
	before := h.used.Load()
	at := now.Unix()
	if since := at - before; since >= 0 && since < int64(useGrain/time.Second) {
		return
	}
	h.used.Store(at)
	if h.idle(now, before) {
		h.reschedule()
	}
}

// idle reports whether the last use is so long ago that the credential is left alone.
func (h *holder) idle(now time.Time, used int64) bool {
	limit := h.issuer.policy(newConfig()).Idle
	return limit > 0 && now.Sub(time.Unix(used, 0)) > limit+useGrain
}

// reschedule sets when the background looks at the holder next.
func (h *holder) reschedule() {
	for at := h.wake(moment()); ; {
		h.schedule.Set(&h.job, at)
		// Between the look and the Set another caller may have set a time by what came
		// later: look again until nothing earlier is needed.
		now := h.wake(moment())
		if now.Equal(at) || at.Before(now) && !at.IsZero() {
			return
		}
		at = now
	}
}

// wake returns when the background has to look at the holder, zero if never: for what
// storage did not take, for a leak response, and for each account that is due to ask.
func (h *holder) wake(now kept.Moment) time.Time {
	st := h.current(now)
	if st == nil {
		return time.Time{} // the doors load it
	}
	at := earliest(st.unstored.by(now).nextTime(), h.pursuit.Load().nextTime())
	if h.idle(now.Wall, h.used.Load()) {
		return at
	}
	for _, a := range h.accounts() {
		if a.admitted() {
			at = earliest(at, st.Next(a.failures[h.slot].Load().by(now).kept()))
		}
	}
	return at
}

// clockSetBack plans anew, after the wall clock was set back: the times that were planned
// by it lie ahead.
func (h *holder) clockSetBack(now time.Time) {
	if p, st := h.pursuit.Load(), h.state.Load(); p != nil && st != nil && st.Leak != nil {
		h.pursuit.CompareAndSwap(p, p.keptApart(st, now))
	}
	for _, one := range h.family() {
		one.reschedule()
	}
}

// slowCall: a call of this length or more is slow.
const slowCall = time.Second

// wakeKey says which work of the background the holder's shares a queue with: what goes
// the same way at the same speed. Where the kinds differ, neither delays the other.
func (h *holder) wakeKey() wake.Key {
	kind := h.issuer.credential
	if h.pursuit.Load() != nil {
		kind = "revocation"
	}
	if all := h.accounts(); len(all) > 0 {
		return all[0].wakeKey(kind, h.slow.Load())
	}
	return wake.Key{Kind: kind}
}

// wakeKey is where work of this kind for the account waits. Its way tells which servers and
// proxies may keep it waiting.
func (a *account) wakeKey(kind string, slow bool) wake.Key {
	return wake.Key{Kind: kind, Slow: slow, Way: a.cfg.way()}
}

// others returns the names at the holder but this one, sorted.
func (h *holder) others(name string) []string {
	var names []string
	for _, a := range *h.present.Load() {
		if a.name != name {
			names = append(names, a.name)
		}
	}
	return names
}
