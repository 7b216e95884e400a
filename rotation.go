package wechat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"
)

const (
	// WeChat's limits for forced refreshes of one appid.
	forcedPerDay  = 20
	forcedSpacing = 30 * time.Second

	day = 24 * time.Hour
)

// history is what storage knows of the forced refreshes of one appid, under
// whichever names it is or was configured.
type history struct {
	Version int `json:"version"`

	// Epoch grows before every forced call, and goes back only if WeChat
	// definitely refused it. A token of another epoch may be dead: it is not
	// served until a normal call has confirmed or replaced it.
	Epoch int `json:"epoch"`

	// Forced holds when the calls of the last 24 hours reached WeChat at the
	// latest, as far as they took effect or may have.
	Forced []time.Time `json:"forced"`
}

func historyKey(appID string) string { return storageKey(rotationPrefix, url.PathEscape(appID)) }

// readHistory returns the stored history of an appid, an empty one if there is
// none, without what is older than a day.
func readHistory(ctx context.Context, s logical.Storage, appID string) (*history, error) {
	h := &history{}
	found, err := readEntry(ctx, s, historyKey(appID), h)
	if err != nil {
		return nil, err
	}
	if !found {
		return &history{Version: schemaVersion}, nil
	}
	now := wallClock()
	h.Forced = slices.DeleteFunc(h.Forced, func(at time.Time) bool {
		return now.Sub(at).Abs() >= day // a day ahead is of a clock that was wrong altogether
	})
	return h, nil
}

// remaining returns how many forced calls may still be made today.
func (h *history) remaining() int { return max(0, forcedPerDay-len(h.Forced)) }

// wait returns how long no forced call may be made.
func (h *history) wait(now time.Time) time.Duration {
	var wait time.Duration
	if n := len(h.Forced); n > 0 {
		// One further ahead is of a clock that was set back since: the day's budget
		// counts it, but it is no reason to wait.
		if last := h.Forced[n-1]; last.Sub(now) <= maxRequestTimeout+time.Minute {
			wait = last.Add(forcedSpacing).Sub(now)
		}
		if n >= forcedPerDay {
			oldest := slices.SortedFunc(slices.Values(h.Forced), time.Time.Compare)[n-forcedPerDay]
			wait = max(wait, oldest.Add(day).Sub(now))
		}
	}
	return max(0, wait)
}

// limited is the problem of a forced call that would come too soon.
func (h *history) limited(wait time.Duration) *problem {
	meaning := fmt.Sprintf("WeChat wants %d seconds between two forced refreshes of an appid", forcedSpacing/time.Second)
	if h.remaining() == 0 {
		meaning = fmt.Sprintf("WeChat allows %d forced refreshes of an appid in 24 hours", forcedPerDay)
	}
	seconds := int64(math.Ceil(wait.Seconds()))
	return &problem{
		rule:  rule{classQuota, http.StatusTooManyRequests, backoff{wait, wait}, meaning, fmt.Sprintf("try again in %d seconds", seconds)},
		local: true, hadNoEffect: true,
	}
}

// gates keeps forced calls of an appid apart from all its other calls: what a
// normal call brings while a forced one is on its way may be dead on arrival.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate // those in use, by appid
}

type gate struct {
	calls *semaphore.Weighted
	users int // guarded by gates.mu
}

const (
	normalCall = 1
	forcedCall = math.MaxInt32 // excludes all others
)

// enter waits until a call of this weight may be made; leave has to follow it.
func (g *gates) enter(ctx context.Context, appID string, weight int64) (leave func(), err error) {
	g.mu.Lock()
	if g.open == nil {
		g.open = make(map[string]*gate)
	}
	this := g.open[appID]
	if this == nil {
		this = &gate{calls: semaphore.NewWeighted(forcedCall)}
		g.open[appID] = this
	}
	this.users++
	g.mu.Unlock()
	done := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if this.users--; this.users == 0 {
			delete(g.open, appID)
		}
	}
	if err := this.calls.Acquire(ctx, weight); err != nil {
		done()
		return nil, err
	}
	return func() {
		this.calls.Release(weight)
		done()
	}, nil
}

// changeHistory changes the stored history of an appid.
func (k *keeper) changeHistory(ctx context.Context, s logical.Storage, appID string, change func(*history) error) (*history, error) {
	k.histories.Lock()
	defer k.histories.Unlock()
	h, err := readHistory(ctx, s, appID)
	if err != nil {
		return nil, err
	}
	if err := change(h); err != nil {
		return nil, err
	}
	return h, writeEntry(ctx, s, historyKey(appID), h)
}

// doubtTwins makes the other accounts with this appid read from storage again
// whether their token still counts.
func (k *keeper) doubtTwins(name, appID string) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, t := range k.tracked {
		// One without a state may be about to get one that was read from storage
		// before the history changed.
		if st := t.current(); t.name != name && (st == nil || st.appID == appID) {
			t.generation.Add(1)
			k.schedule.set(t, wallClock())
		}
	}
}

// rotate replaces the account's token by force, and with revoke announces a
// second time. It returns nil if the account is not configured. An error of
// WeChat or of its limits is a *problem; with errNotBegun nothing was done.
func (k *keeper) rotate(ctx context.Context, s logical.Storage, name string, revoke bool) (r *rotated, err error) {
	t, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	defer k.release(t)
	if st == nil {
		return nil, nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	cfg, err := k.accountOf(ctx, s, t, st)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	if !revoke {
		return k.force(ctx, s, t, st, cfg)
	}
	announced, err := k.announceRevocation(ctx, s, name, st)
	if err != nil {
		return nil, err
	}
	r, err = k.force(ctx, s, t, st, cfg)
	if problemOf(err).noEffect() || errors.Is(err, errNotBegun) {
		// Nothing was done, and one that was pending before goes on.
		k.dropRevocation(ctx, s, announced)
		return nil, err
	}
	announced.next = wallClock().Add(forcedSpacing)
	if old := k.pendRevocation(name, announced); old != nil {
		k.dropRevocation(ctx, s, old)
	}
	return r, err
}

// rotated is what came of a forced refresh.
type rotated struct {
	state     *state
	same      bool // WeChat handed out the token that was to be replaced
	remaining int  // forced refreshes left today
}

// errNotBegun accompanies an error before which no forced call was made.
var errNotBegun = errors.New("no forced refresh was begun, try again")

// force makes one forced call. Whatever happens from then on, the old token is
// not handed out again unless WeChat definitely refused, or a later normal call
// confirms it: that is in storage before the call is made. The caller holds the
// lock.
func (k *keeper) force(ctx context.Context, s logical.Storage, t *tracked, st *state, cfg *config) (*rotated, error) {
	leave, err := k.gates.enter(ctx, cfg.AppID, forcedCall)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	defer leave()
	if k.ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", errNotBegun, errUnmounted)
	}
	now := wallClock()
	h, err := k.changeHistory(ctx, s, cfg.AppID, func(h *history) error {
		if wait := h.wait(now); wait > 0 {
			return h.limited(wait)
		}
		h.Epoch++
		// WeChat counts from when a call reaches it.
		h.Forced = append(h.Forced, now.Add(cfg.RequestTimeout))
		return nil
	})
	switch {
	case problemOf(err) != nil: // the limits
		return nil, err
	case err != nil:
		// The history may have been written all the same: look again.
		k.reload(ctx, s, t)
		k.doubtTwins(t.name, cfg.AppID)
		return nil, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	doubtful := st.doubtedSince(now)
	t.state.Store(doubtful)
	k.doubtTwins(t.name, cfg.AppID)

	g, err := k.client.stableToken(k.ctx, cfg.endpoint(), true)
	if problemOf(err).noEffect() {
		k.undoForce(ctx, s, t, st)
		return nil, err
	}
	if err == nil {
		err = g.check()
	}
	var tok *token
	if err == nil {
		if tok = g.adopt(st.token, cfg.ID, h.Epoch); st.token == nil {
			tok.Forced++ // it replaced a token that the engine never had
		}
		err = storeToken(ctx, s, t.name, st.token, tok)
	}
	if err != nil {
		if k.ctx.Err() != nil {
			return nil, errUnmounted
		}
		p := asProblem(err)
		failed := doubtful.failed(p, now, wallClock(), syncJitter())
		failed.failure.next = failed.failure.at // a normal call is to tell at once what holds
		t.state.Store(failed)
		return nil, p
	}
	next := doubtful.succeeded(g, tok, syncJitter())
	t.state.Store(next)
	if err := k.dateForce(ctx, s, cfg.AppID, g.answered); err != nil {
		k.log.Warn("the next forced refresh will have to wait longer than it needs to", "account", t.name, "error", err)
	}
	same := st.token != nil && st.token.AccessToken == tok.AccessToken
	k.log.Info("forced refresh", "account", t.name, "appid", cfg.AppID, "replaced", !same, "remaining", h.remaining())
	return &rotated{next, same, h.remaining()}, nil
}

// dateForce notes when a forced call was answered, instead of the latest time
// at which it could have reached WeChat.
func (k *keeper) dateForce(ctx context.Context, s logical.Storage, appID string, answered time.Time) error {
	_, err := k.changeHistory(ctx, s, appID, func(h *history) error {
		if n := len(h.Forced); n > 0 {
			h.Forced[n-1] = answered
		}
		return nil
	})
	return err
}

// undoForce restores what held before a forced call that WeChat refused. If
// storage does not take it, the token stays in doubt until a normal call
// confirms it.
func (k *keeper) undoForce(ctx context.Context, s logical.Storage, t *tracked, st *state) {
	_, err := k.changeHistory(ctx, s, st.appID, func(h *history) error {
		h.Epoch--
		h.Forced = h.Forced[:max(0, len(h.Forced)-1)]
		return nil
	})
	if err != nil {
		k.log.Warn("a refused forced refresh stays in the history", "account", t.name, "error", err)
		return
	}
	t.state.Store(st)
	k.doubtTwins(t.name, st.appID)
}
