package wechat

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
)

// reloadInterval is how often the background tries to load what storage
// did not give.
const reloadInterval = 30 * time.Second

// slowCall is how long a call takes at least that is slow.
const slowCall = time.Second

var (
	errUnmounted = errors.New("the mount is being closed")
	errChanged   = errors.New("the configuration of the account was changed meanwhile: try again")
)

// common is what the accounts of one mount have in common.
type common struct {
	log     hclog.Logger
	client  *client
	metrics *metrics
	events  *events

	// writable tells whether this node may write to storage; where it may not,
	// it does not call WeChat either.
	writable func() bool

	// ctx ends when the mount does, and with it every call to WeChat.
	ctx context.Context

	schedule *wake.Schedule
	busy     sync.WaitGroup // what runs in the background

	// tend does what is due for an account or a ticket. start sets it, before it starts
	// the schedule, which alone calls it.
	tend func(any)

	appids appids
}

// account is one account in memory.
//
// Whatever calls WeChat for an account, or writes to its storage, holds its lock; so
// at most one call per account is in flight. Whoever wants to hand out its token
// takes no lock: it asks the state, which is replaced whole, whether the token is
// servable at that moment.
type account struct {
	name string
	*common

	lock *semaphore.Weighted // held by whoever calls WeChat for it or writes its storage
	gone bool                // guarded by lock: no longer in the registry

	// quotaCleared is set, without lock, while a wait for the daily quota is to end:
	// whoever releases the lock sees to that.
	quotaCleared atomic.Bool

	// needsLoad is set while there is no state although the account is, or may be,
	// configured: the background loads it again. Guarded by lock.
	needsLoad bool

	// configUnsure is set while a write of the configuration has failed and storage
	// could not be asked which of the two it holds: the background asks again. Guarded
	// by lock.
	configUnsure bool

	// last is the state that load replaces, which may know more than storage does.
	// Guarded by lock.
	last *state

	// overtaken is when a normal call last came to nothing because of a forced call of
	// another name, by the clock that nobody can set. Guarded by lock.
	overtaken time.Time

	// joined is the appid of which the account is a member. Guarded by lock.
	joined *appid

	// state is nil until it was loaded. It is stored under lock, and read
	// without.
	state atomic.Pointer[state]

	// generation counts the changes that other nodes made to the account in storage:
	// a state of an older generation is stale, whenever it was stored.
	generation atomic.Uint64

	// tickets are those that were used, nil the others. They are read and replaced
	// without lock; what one of them is for, its own state says.
	tickets [ticketTypes]atomic.Pointer[accountTicket]

	job wake.Job
}

func newAccount(c *common, name string) *account {
	a := &account{name: name, common: c, lock: semaphore.NewWeighted(1)}
	a.job = wake.Job{Key: a.key, Work: func() { c.tend(a) }}
	return a
}

// key says which other accounts the background keeps this one waiting for.
func (a *account) key() wake.Key {
	st := a.state.Load()
	if st == nil {
		return wake.Key{Kind: "load"}
	}
	key := wake.Key{Kind: "token", Slow: st.took >= slowCall, Way: st.way}
	if l := st.appid.leak.Load(); l != nil && l.Turn == a.name {
		key.Kind = "leak response"
	}
	return key
}

// wake has the background look at the account now.
func (a *account) wake() { a.schedule.Set(&a.job, wallClock()) }

// version tells states of different contents of storage apart, as far as other nodes
// change it.
func (a *account) version(ap *appid) uint64 { return a.generation.Load() + ap.stale.Load() }

// current returns what is known of the account, nil if it has to be loaded. What was
// noted before the clock was set back is checked anew at each call, until the lock's
// next holder replaces it.
func (a *account) current() *state {
	st := a.state.Load()
	if st == nil || st.version != a.version(st.appid) {
		return nil
	}
	present := era()
	if now := wallClock(); st.era != era() {
		st.appid.clockSetBack(now)
		return st.recheck(now, present)
	}
	return st
}

// setState replaces the state. The caller holds the lock.
func (a *account) setState(st *state) {
	a.last, a.needsLoad = nil, false
	a.state.Store(st)
}

// forget drops the state of an account that is, or may be, configured: until it
// is loaded again the background keeps trying to. The caller holds the lock.
func (a *account) forget() {
	if st := a.state.Load(); st != nil {
		a.last = st
	}
	a.needsLoad = true
	a.state.Store(nil)
}

// remove drops all that is in memory of an account that is not configured. The
// caller holds the lock.
func (a *account) remove() {
	a.setState(nil)
	a.forgetTickets()
	if a.joined != nil {
		a.appids.leave(a.joined, a.name)
		a.joined = nil
	}
}

// join makes the account a member of the appid of its configuration, and of no other.
// The caller holds the lock.
func (a *account) join(cfg *config) *appid {
	ap := a.appids.join(cfg, a.name, a.wake)
	if a.joined != nil && a.joined != ap {
		a.appids.leave(a.joined, a.name)
	}
	a.joined = ap
	return ap
}

// load reads the account and its token from storage, and returns the state made
// of them, nil if the account is not configured. What memory knew and storage could
// not be told is kept. A state that a change in storage overtook is good for this
// request only. The caller holds the lock.
func (a *account) load(ctx context.Context, s logical.Storage) (*state, error) {
	a.forget()
	generation := a.generation.Load()
	cfg, err := loadConfig(ctx, s, a.name)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		a.remove()
		return nil, nil
	}
	a.configUnsure = false
	ap := a.join(cfg)
	stale := ap.stale.Load()
	if err := ap.load(ctx, s); err != nil {
		return nil, err
	}
	tok, err := readToken(ctx, s, a.name)
	if err != nil {
		return nil, err
	}
	st := newState(cfg, ap, tok, randomFraction())
	if a.last.sameAccount(cfg) {
		st = st.remember(a.last)
		// What memory remembers may be of credentials that were never stored.
		st.accepted = st.token != nil && st.token.Credentials == cfg.Credentials
	}
	if st.token != nil {
		ap.recall(st.token)
		present := era()
		if now := wallClock(); st.token.liesAhead(now) { // the clock was set back since
			ap.clockSetBack(now)
			st = st.recheck(now, present)
			st.ends = time.Now() // when it really ends WeChat has to tell
		}
	}
	for _, r := range ap.guards.leaks {
		st.adopt(r, a.name)
	}
	st.version = generation + stale
	a.setState(st)
	return st, nil
}

// reload brings memory in line with storage after a write failed. If storage
// cannot be read either, the background tries again.
func (a *account) reload(ctx context.Context, s logical.Storage) {
	if _, err := a.load(ctx, s); err != nil {
		a.log.Error("the account cannot be read from storage", "account", a.name, "error", err)
	}
}

// reloadSame is reload for an account that stays the one whose state is st, whatever
// storage holds: if that cannot be read, st is served on. The caller holds the lock.
func (a *account) reloadSame(ctx context.Context, s logical.Storage, st *state) {
	if a.reload(ctx, s); a.state.Load() != nil || !a.needsLoad {
		return
	}
	kept := *st
	kept.config = &atomic.Pointer[config]{} // it is to be read anew
	kept.accepted = false                   // which credentials storage holds is not known
	a.setState(&kept)
	a.configUnsure = true
}

// publish makes next the account's state after it was stored, as far as storage
// differs: its token unless that is the stored one, and the history of its appid. If
// storage does not take it, what WeChat has answered is served all the same, and the
// background goes on trying to store it. The caller holds the lock.
func (a *account) publish(ctx context.Context, s logical.Storage, next *state, stored *token) *state {
	published := *next
	var err error
	if a.ctx.Err() == nil { // another instance of the mount may be at work already
		if next.token != nil {
			err = storeToken(ctx, s, a.name, stored, next.token)
		}
		if a.ctx.Err() == nil { // the token may have taken its time
			err = errors.Join(err, next.appid.save(ctx, s))
		}
	}
	if a.ctx.Err() != nil {
		_ = a.removeOrphan(ctx, s) // what was written late must not outlive the account
	}
	if published.unstored = nil; err != nil {
		published.unstored = next.unstored.after(storageProblem(err), wallClock())
		if next.unstored == nil {
			a.log.Error("what WeChat answered cannot be stored: it is served from memory, and tried to be stored again", "account", a.name, "error", err)
		}
	}
	changed := published.token != nil && !cmp.Or(a.state.Load(), a.last).sameToken(&published)
	a.setState(&published)
	if changed {
		a.events.send(eventTokenRotate, tokenPrefix, a.name, "expire_time", timestamp(published.token.ExpireTime))
	}
	if err == nil {
		a.tellRevoked(next.appid)
	}
	return &published
}

// tellRevoked tells of a leak response that is complete, once storage has it.
func (a *account) tellRevoked(ap *appid) {
	ap.mu.Lock()
	by := ap.revoked
	ap.revoked = ""
	ap.mu.Unlock()
	if by != "" {
		a.log.Info("revocation complete", "account", by)
		a.events.send(eventRevocationComplete, statusPrefix, by)
	}
}

// removeOrphan removes a token and tickets without their configuration, or of an
// account that this name no longer stands for. It looks only at what is in storage. The
// caller holds the lock, or is the last to write for a mount that is closed.
func (a *account) removeOrphan(ctx context.Context, s logical.Storage) error {
	owners, err := a.owners(ctx, s)
	if err != nil || len(owners) == 0 {
		return err
	}
	cfg, err := loadConfig(ctx, s, a.name)
	if err != nil {
		return err
	}
	for key, owner := range owners {
		if cfg != nil && cfg.ID == owner {
			continue
		}
		a.log.Info("removing what an unfinished change left behind", "account", a.name, "entry", key)
		if err := s.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// owners returns, for what storage holds besides the configuration of an account, the
// config.ID that it belongs to.
func (a *account) owners(ctx context.Context, s logical.Storage) (map[string]string, error) {
	owners := map[string]string{}
	tok, err := readToken(ctx, s, a.name)
	if err != nil {
		return nil, err
	}
	if tok != nil {
		owners[storageKey(tokenPrefix, a.name)] = tok.AccountID
	}
	for kind := range ticketTypes {
		t, err := readTicket(ctx, s, kind, a.name)
		if err != nil {
			return nil, err
		}
		if t != nil {
			owners[ticketKey(kind, a.name)] = t.AccountID
		}
	}
	return owners, nil
}

func (a *account) newTicket(kind ticketType, way string) *accountTicket {
	t := &accountTicket{name: a.name, kind: kind, way: way, lock: semaphore.NewWeighted(1)}
	t.job = wake.Job{Key: t.key, Work: func() { a.tend(t) }}
	return t
}

// ticket returns the account's ticket of a type in memory, where it puts it if need be.
func (a *account) ticket(kind ticketType, way string) *accountTicket {
	for {
		if t := a.tickets[kind].Load(); t != nil {
			return t
		}
		a.tickets[kind].CompareAndSwap(nil, a.newTicket(kind, way))
	}
}

// forgetTickets drops the tickets from memory. Who is busy with one does not get what
// comes of it into memory or storage again.
func (a *account) forgetTickets() {
	for kind := range ticketTypes {
		a.forgetTicket(kind)
	}
}

func (a *account) forgetTicket(kind ticketType) {
	if t := a.tickets[kind].Swap(nil); t != nil {
		a.schedule.Set(&t.job, time.Time{})
	}
}

// renewTickets ends the waits of tickets for failures that were mended, also for one with
// which a call in the air is yet to end: each ticket goes on as another one, for which
// what such a call brings does not count. way is the account's from now on.
func (a *account) renewTickets(way string, mended func(*problem) bool) {
	for kind := range ticketTypes {
		t := a.tickets[kind].Load()
		if t == nil {
			continue
		}
		now, next := wallClock(), a.newTicket(kind, way)
		next.used.Store(t.used.Load())
		at := time.Time{}
		if ts := t.state.Load(); ts != nil {
			if ts.failure != nil && mended(ts.failure.problem) {
				ts = ts.retried(now)
			}
			next.state.Store(ts)
			at = ts.wake()
		}
		if a.tickets[kind].CompareAndSwap(t, next) {
			a.schedule.Set(&t.job, time.Time{})
			a.schedule.Set(&next.job, at)
		}
	}
}

// recheckTickets has the tickets compared at once after the clock was set back to now.
func (a *account) recheckTickets(now time.Time) {
	for kind := range ticketTypes {
		t := a.tickets[kind].Load()
		if t == nil {
			continue
		}
		t.used.Store(min(t.used.Load(), now.Unix()))
		if ts := t.state.Load(); ts != nil && t.state.CompareAndSwap(ts, ts.recheck(now)) {
			a.schedule.Set(&t.job, now)
		}
	}
}

// endQuotaWait ends the account's wait if its quota was cleared. The caller holds the
// lock.
func (a *account) endQuotaWait() {
	if !a.quotaCleared.Swap(false) {
		return
	}
	if st := a.state.Load(); st != nil && st.failure != nil && isQuota(st.failure.problem) {
		next := *st
		next.failure = nil
		a.setState(&next)
	}
	if a.joined != nil {
		if l := a.joined.leak.Load(); l != nil && l.quota {
			a.joined.changeLeak((*leak).mended)
		}
	}
}

// removeTickets removes the tickets from storage. The caller holds the lock.
func (a *account) removeTickets(ctx context.Context, s logical.Storage) error {
	for kind := range ticketTypes {
		// To look first costs less than to write for nothing.
		key := ticketKey(kind, a.name)
		entry, err := s.Get(ctx, key)
		if err == nil && entry != nil {
			err = s.Delete(ctx, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// configOf reads the configuration that belongs to a state. The caller holds the lock.
func (a *account) configOf(ctx context.Context, s logical.Storage, st *state) (*config, error) {
	cfg, err := loadConfig(ctx, s, a.name)
	if err == nil && !st.sameAccount(cfg) {
		a.forget() // another node changed it
		return nil, errChanged
	}
	return cfg, err
}

// detached detaches ctx from the request: what was begun with WeChat is finished
// even if the caller goes away. It may ask more than once, and use storage.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 2*storageTimeout+4*maxRequestTimeout)
}
