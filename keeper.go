package wechat

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"
)

const (
	// storageTimeout bounds the storage operations that follow WeChat's answer:
	// they outlive the request that caused them, so that no answer is lost.
	storageTimeout = 30 * time.Second

	// reloadInterval is how often the background tries to load what storage
	// did not give.
	reloadInterval = 30 * time.Second
)

// keeper keeps the tokens of one mount. It alone decides when WeChat is called,
// and it alone writes a token.
//
// Whatever calls WeChat for an account, or writes to its storage, holds the
// account's lock; so at most one call per account is in flight. Readers of a
// token that is not due take no lock and touch no storage.
type keeper struct {
	log    hclog.Logger
	client *client
	gates  gates

	// writable tells whether this node may write to storage; where it may not,
	// it does not call WeChat either.
	writable func() bool

	// ctx ends when the mount does, and with it every call to WeChat.
	ctx    context.Context
	cancel context.CancelFunc

	schedule *schedule
	started  sync.Once
	loaded   chan struct{} // closed when every account was tried to be loaded, or the mount is closed

	mu      sync.RWMutex
	tracked map[string]*tracked // guarded by mu

	clock       clockReading                 // when Vault's tick came last; guarded by mu
	revocations map[string]*revocation // what is pending, by name; guarded by mu
	histories   sync.Mutex             // held while a history is changed in storage
}

// tracked is an account in memory.
type tracked struct {
	name string

	lock *semaphore.Weighted // held by whoever calls WeChat for it or writes its storage
	gone bool                // guarded by lock: no longer in keeper.tracked

	// unsure is set while there is no state although the account is, or may be,
	// configured: the background loads it again. Guarded by lock.
	unsure bool

	// state is nil until it was loaded. It is stored under lock, and read
	// without.
	state atomic.Pointer[state]

	// generation counts the changes in storage that were not made under lock,
	// by other nodes or for another account with the same appid: a state of an
	// older generation is stale, whenever it was stored.
	generation atomic.Uint64

	slot slot // the schedule's
}

// forget drops the state of an account that is, or may be, configured: until it
// is loaded again the background keeps trying to. The caller holds the lock.
func (t *tracked) forget() {
	t.unsure = true
	t.state.Store(nil)
}

// current returns what is known of the account, nil if it has to be loaded.
func (t *tracked) current() *state {
	st := t.state.Load()
	if st == nil || st.generation != t.generation.Load() {
		return nil
	}
	return st
}

func newKeeper(log hclog.Logger, c *client, writable func() bool) *keeper {
	k := &keeper{
		log: log, client: c, writable: writable, loaded: make(chan struct{}), clock: readClock(),
		tracked: make(map[string]*tracked), revocations: make(map[string]*revocation),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.schedule = newSchedule(func(t *tracked) bool {
		st := t.current()
		return st != nil && st.failure != nil && st.failure.took >= slowFailure
	})
	return k
}

// lookup returns the account if it is in memory, nil otherwise.
func (k *keeper) lookup(name string) *tracked {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.tracked[name]
}

// acquire locks the account of this name, whether it is configured or not.
// release has to follow.
func (k *keeper) acquire(ctx context.Context, name string) (*tracked, error) {
	for {
		t := k.track(name)
		if err := t.lock.Acquire(ctx, 1); err != nil {
			if t.lock.TryAcquire(1) {
				k.release(t)
			}
			return nil, err
		}
		if !t.gone {
			return t, nil
		}
		t.lock.Release(1)
	}
}

// tryAcquire is acquire for Vault's tick, which must not wait: it returns nil if
// somebody else holds the lock.
func (k *keeper) tryAcquire(name string) *tracked {
	t := k.track(name)
	if !t.lock.TryAcquire(1) {
		return nil
	}
	if t.gone {
		t.lock.Release(1)
		return nil
	}
	return t
}

// track returns the account of this name in memory, where it puts it if need be.
func (k *keeper) track(name string) *tracked {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tracked[name]
	if t == nil {
		t = &tracked{name: name, lock: semaphore.NewWeighted(1)}
		k.tracked[name] = t
	}
	return t
}

// release unlocks the account, sets when the background looks at it next, and
// forgets it if it is not configured: asking for names that are not there
// leaves nothing behind.
func (k *keeper) release(t *tracked) {
	switch st := t.current(); {
	case t.gone:
	case st != nil:
		at := st.wake()
		if r := k.pendingRevocation(t.name); r != nil && (at.IsZero() || r.next.Before(at)) {
			at = r.next
		}
		k.schedule.set(t, at)
	case t.state.Load() != nil: // overtaken by a change in storage
		k.schedule.set(t, wallClock())
	case t.unsure:
		k.schedule.set(t, wallClock().Add(reloadInterval))
	default:
		t.gone = true
		k.schedule.set(t, time.Time{})
		k.mu.Lock()
		delete(k.tracked, t.name)
		k.mu.Unlock()
	}
	t.lock.Release(1)
}

// load reads the account and its token from storage, and returns the state made
// of them, nil if the account is not configured. A state that a change
// in storage overtook is good for this request only. The caller holds the lock.
func (k *keeper) load(ctx context.Context, s logical.Storage, t *tracked) (*state, error) {
	generation := t.generation.Load()
	last := t.state.Load()
	if last != nil {
		t.forget()
	}
	cfg, err := loadConfig(ctx, s, t.name)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		t.unsure = false
		return nil, nil
	}
	tok, err := readToken(ctx, s, t.name)
	if err != nil {
		return nil, err
	}
	h, err := readHistory(ctx, s, cfg.AppID)
	if err != nil {
		return nil, err
	}
	t.unsure = false
	st := newState(cfg, tok, h.Epoch, rand.Float64()) //nolint:gosec // jitter needs no secrecy
	if now := wallClock(); st.token != nil && st.token.RotatedAt.Sub(now) > clockTolerance && k.writable() {
		st = st.anew(now) // the clock was set back since
	}
	if st.token == nil && last != nil && last.accountID == st.accountID {
		st.failure = last.failure // somebody waits for this token: it is tried on
	}
	st.generation = generation
	t.state.Store(st)
	return st, nil
}

// acquireLoaded is acquire for an account whose state is needed. The state is
// nil if the account is not configured.
func (k *keeper) acquireLoaded(ctx context.Context, s logical.Storage, name string) (*tracked, *state, error) {
	t, err := k.acquire(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	st := t.current()
	if st == nil {
		if st, err = k.load(ctx, s, t); err != nil {
			k.release(t)
			return nil, nil, err
		}
	}
	return t, st, nil
}

// read returns the account's state with a token that is usable at the given
// time, asking WeChat if that is due. The state is nil if the account is not
// configured. An error from WeChat is a *problem.
func (k *keeper) read(ctx context.Context, s logical.Storage, name string) (st *state, now time.Time, err error) {
	now = wallClock()
	if t := k.lookup(name); t != nil {
		switch st := t.current(); {
		case st == nil:
		case st.settled(now):
			return st, now, nil
		case !st.usable(now) && st.failure.holds(now):
			return nil, now, st.failure.problem
		}
	}
	t, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, now, err
	}
	defer k.release(t)
	now = wallClock()
	switch {
	case st == nil || st.settled(now):
		return st, now, nil
	case st.failure.holds(now):
		return nil, now, st.failure.problem
	case !k.writable():
		return nil, now, logical.ErrReadOnly
	}
	next, err := k.refresh(ctx, s, t, st)
	now = wallClock()
	switch {
	case errors.Is(err, errUnmounted) && st.usable(now):
		return st, now, nil
	case err != nil:
		return nil, now, err
	case next.usable(now):
		return next, now, nil
	case next.failure == nil:
		return nil, now, &problem{rule: ruleStorage, detail: "storing the token took longer than its life"}
	}
	return nil, now, next.failure.problem
}

// look returns the account's state as it is, nil if it is not configured.
func (k *keeper) look(ctx context.Context, s logical.Storage, name string) (*state, error) {
	if t := k.lookup(name); t != nil {
		if st := t.current(); st != nil {
			return st, nil
		}
	}
	t, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, err
	}
	k.release(t)
	return st, nil
}

// refreshNow answers an application that WeChat told its token is not valid.
// rejected is that token, or empty. It asks WeChat at most once in settleTime,
// and never by force. changed tells whether the account's token is another one
// now. The state is nil if the account is not configured.
func (k *keeper) refreshNow(ctx context.Context, s logical.Storage, name, rejected string) (st *state, changed bool, err error) {
	var seen *state // what was known when the request came
	if t := k.lookup(name); t != nil {
		seen = t.current()
	}
	if seen != nil && rejected != "" && seen.usable(wallClock()) && seen.token.AccessToken != rejected {
		return seen, true, nil
	}
	t, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil || st == nil {
		if err == nil {
			k.release(t)
		}
		return nil, false, err
	}
	defer k.release(t)
	if seen == nil {
		seen = st
	}
	if rejected == "" && seen.token != nil {
		rejected = seen.token.AccessToken
	}
	now := wallClock()
	another := st.usable(now) && st.token.AccessToken != rejected
	switch {
	case another && rejected != "":
		return st, true, nil
	case st.failure.holds(now), st.failure.recent(now):
		return nil, false, st.failure.problem
	case st.usable(now) && st.failure == nil && now.Sub(st.lastSuccess) < settleTime:
		return st, another, nil
	case !k.writable():
		return nil, false, logical.ErrReadOnly
	}
	if st, err = k.refresh(ctx, s, t, st); err != nil {
		return nil, false, err
	}
	if st.failure != nil {
		return nil, false, st.failure.problem
	}
	return st, st.token.AccessToken != rejected, nil
}

// refresh makes one normal call, stores the token if it is another one, and
// remembers what came of it. The caller holds the lock.
func (k *keeper) refresh(ctx context.Context, s logical.Storage, t *tracked, st *state) (*state, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	leave, err := k.gates.enter(ctx, st.appID, normalCall)
	if err != nil {
		return nil, err
	}
	defer leave()
	cfg, err := k.accountOf(ctx, s, t, st)
	if errors.Is(err, errChanged) {
		return nil, err
	}
	var g *tokenAnswer
	var tok *token
	begun := wallClock()
	if err == nil {
		if g, tok, err = k.ask(ctx, s, t.name, cfg, st.token); err == nil {
			err = storeToken(ctx, s, t.name, st.token, tok)
		}
	}
	if k.ctx.Err() != nil {
		return nil, errUnmounted
	}
	if err != nil {
		p := asProblem(err)
		if g != nil && (tok == nil || tok.Epoch != st.token.epoch()) {
			st = st.doubtedSince(wallClock()) // WeChat has named another token, or is to confirm this one
		}
		st = st.failed(p, begun, wallClock(), syncJitter())
		k.log.Warn("no token from WeChat", "account", t.name, "appid", st.appID, "class", string(p.class), "errcode", p.errcode, "rid", p.rid,
			"failures", st.failure.count, "next_attempt", timestamp(st.failure.next), "message", p.message())
	} else {
		if st.failure != nil || st.token == nil || st.token.AccessToken != tok.AccessToken {
			k.log.Debug("token from WeChat", "account", t.name, "appid", st.appID, "expire_time", timestamp(tok.ExpireTime))
		}
		st = st.succeeded(g, tok, syncJitter())
	}
	t.state.Store(st)
	return st, nil
}

var (
	errUnmounted = errors.New("the mount is being closed")
	errChanged   = errors.New("the configuration of the account was changed meanwhile: try again")
)

// accountOf reads the configuration that belongs to a state.
func (k *keeper) accountOf(ctx context.Context, s logical.Storage, t *tracked, st *state) (*config, error) {
	cfg, err := loadConfig(ctx, s, t.name)
	if err == nil && (cfg == nil || !st.is(cfg)) {
		t.forget() // another node changed it
		return nil, errChanged
	}
	return cfg, err
}

// ask makes one normal call, and turns its answer into the token to keep
// instead of old, which is nil where there is none. With a grant and an error
// WeChat has answered, and the answer could not be noted. The caller has entered
// the appid's gate, and leaves it when the token is stored and in memory: until
// then a forced call would not find there what it kills.
func (k *keeper) ask(ctx context.Context, s logical.Storage, name string, cfg *config, old *token) (*tokenAnswer, *token, error) {
	h, err := readHistory(ctx, s, cfg.AppID)
	if err != nil {
		return nil, nil, err
	}
	g, err := k.client.stableToken(k.ctx, cfg.endpoint(), false)
	if err == nil {
		err = g.check()
	}
	if err != nil {
		return nil, nil, err
	}
	if old != nil && old.AccountID == cfg.ID && old.Epoch == h.Epoch && g.token != old.AccessToken && old.end().Sub(g.asked) > overlap {
		// Somebody outside replaced it by force: the other accounts with this
		// appid hold a dead token too.
		h, err = k.changeHistory(ctx, s, cfg.AppID, func(h *history) error {
			if h.Epoch == old.Epoch { // none of them has noticed it yet
				h.Epoch++
			}
			return nil
		})
		if err != nil {
			return g, nil, err
		}
		k.doubtTwins(name, cfg.AppID)
	}
	return g, g.adopt(old, cfg.ID, h.Epoch), nil
}

// storeToken writes the token unless it is the stored one.
func storeToken(ctx context.Context, s logical.Storage, name string, stored, t *token) error {
	if stored != nil && *stored == *t {
		return nil
	}
	return writeEntry(ctx, s, storageKey(tokenPrefix, name), t)
}

// asProblem is err as it is remembered. What is not a problem with WeChat is
// one with storage.
func asProblem(err error) *problem {
	if p := problemOf(err); p != nil {
		return p
	}
	return &problem{rule: ruleStorage, detail: truncate(err.Error())}
}

// syncJitter is the part of sync_interval until the next comparison.
func syncJitter() float64 { return 0.9 + 0.1*rand.Float64() } //nolint:gosec // jitter needs no secrecy

// detached detaches ctx from the request: what was begun with WeChat is finished
// even if the caller goes away. Before its own call it may wait for two others, a
// forced one and one before that.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storageTimeout+3*maxRequestTimeout)
}

// reload brings memory in line with storage after a write failed. If storage
// cannot be read either, the background tries again.
func (k *keeper) reload(ctx context.Context, s logical.Storage, t *tracked) {
	if _, err := k.load(ctx, s, t); err != nil {
		t.unsure = true // also if it never was in memory
		k.log.Error("the account cannot be read from storage", "account", t.name, "error", err)
	}
}

// twins returns the other accounts with the same appid that are in memory,
// sorted.
func (k *keeper) twins(name, appID string) []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var others []string
	for _, t := range k.tracked {
		if st := t.state.Load(); t.name != name && st != nil && st.appID == appID {
			others = append(others, t.name)
		}
	}
	slices.Sort(others)
	return others
}

// invalidate forgets what another node changed in storage. It may be called
// while the account is being loaded.
func (k *keeper) invalidate(key string) {
	if escaped, ok := strings.CutPrefix(key, rotationPrefix); ok {
		if appID, err := url.PathUnescape(escaped); err == nil {
			k.doubtTwins("", appID)
		}
	}
	for _, prefix := range []string{configPrefix, tokenPrefix} {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			if t := k.lookup(storedName(name)); t != nil {
				t.generation.Add(1)
			}
		}
	}
}
