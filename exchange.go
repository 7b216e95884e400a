package wechat

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/once"
)

const (
	// maxExchanges and maxMountExchanges are how many logins of an account, and of a
	// mount, are in flight: an account that hangs leaves the others their places.
	maxExchanges      = 256
	maxMountExchanges = 1024

	// exchangeMemory is how long a login's outcome is given to requests with the same
	// code: a client's retry or a double tap. Not longer, because a code that works
	// once is a protection.
	exchangeMemory = 10 * time.Second

	// lostMemory is how long it is known that a code was sent and its answer lost: the
	// life of a code. maxLost is of how many codes.
	lostMemory = 5 * time.Minute
	maxLost    = 10_000

	// clearingMemory is exchangeMemory for a clearing of the quota, of which WeChat
	// allows ten a month.
	clearingMemory = 60 * time.Second

	// outcomeSize is about what an outcome takes in memory besides its texts, and
	// maxRememberedSize what all of them together may take, in bytes.
	outcomeSize       = 300
	maxRememberedSize = 64 << 20
)

// An account's logins through one API are refused when failuresInARow have failed one
// after the other and none has succeeded for successCounts. One at a time then tries
// whether that is mended, a tryPause for each; those that no login used are saved, up to
// triesSaved, so that a user who fails again and again leaves some to the others. Five
// calls a second are never exceeded. A row without a failure for failureAge counts no
// longer.
const (
	failuresInARow = 5
	successCounts  = 2 * time.Second
	tryPause       = 400 * time.Millisecond
	triesSaved     = 2
	failureAge     = time.Minute

	// loginLogInterval is how often the failures of such logins are logged.
	loginLogInterval = time.Minute
)

// errClosing is what requests get whose call the end of the mount has cut short.
var errClosing = errors.New("the mount is being closed: try again")

// ruleNoPlace is of a login for which there was no place in time.
var ruleNoPlace = rule{
	classQuota, http.StatusServiceUnavailable, backoffNone,
	"too many calls of WeChat are in flight", "try again in some seconds; if it lasts, find out why WeChat answers slowly",
}

// exchanges makes the calls that take an account's AppSecret and have nothing to do
// with its token: logins, and the clearing of its quota. Nothing of it is stored, and
// nothing of it touches the token.
type exchanges struct {
	log       hclog.Logger
	client    *client
	metrics   *exchangeCounters
	logins    *once.Group[digested, any]
	clearings *once.Group[string, struct{}] // by account ID
	places    *semaphore.Weighted           // of all accounts

	mu       sync.Mutex // guards what follows, and all that it holds
	accounts map[string]*exchanger
	lost     map[digested]time.Time // when the answer to a code was lost
}

// exchanger is what the exchanges of one account share.
type exchanger struct {
	appid  string              // the key of its history, see historyKey
	places *semaphore.Weighted // of its logins
	health map[api]*health
}

// health is how an account's calls of one API fare. A call keeps to the one that it
// began with: where the account is mended meanwhile, a new one takes its place, and what
// is still in the air changes nothing of that. Of clearings it has problem and next only.
type health struct {
	failed    int       // calls in a row
	problem   *problem  // the last of them
	last      digested  // its code
	at        time.Time // its end
	succeeded time.Time // when a call last did
	trying    bool      // a call tries whether it is mended
	next      time.Time // when the next may
	logged    time.Time
}

// digested is a digest of texts that must not be seen.
type digested [sha256.Size]byte

// newExchanges returns the exchanges of a mount, which end with ctx.
func newExchanges(ctx context.Context, log hclog.Logger, c *client, counters *exchangeCounters) *exchanges {
	calls, end := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { end(errClosing) })
	return &exchanges{
		log: log, client: c, metrics: counters,
		logins:    once.New[digested, any](calls, exchangeMemory, maxRememberedSize),
		clearings: once.New[string, struct{}](calls, clearingMemory, maxRememberedSize),
		places:    semaphore.NewWeighted(maxMountExchanges),
		accounts:  make(map[string]*exchanger),
		lost:      make(map[digested]time.Time),
	}
}

// session exchanges the code of wx.login for the user's session, for the account of
// this name and configuration. An error of WeChat is a *problem.
func (x *exchanges) session(ctx context.Context, name string, cfg *config, code string) (*session, error) {
	return exchange(ctx, x, name, cfg, apiCode2Session, code, x.client.codeToSession)
}

// userToken exchanges the code of a web login for the user's tokens, as session does.
func (x *exchanges) userToken(ctx context.Context, name string, cfg *config, code string) (*userToken, error) {
	return exchange(ctx, x, name, cfg, apiOAuth2, code, x.client.userToken)
}

func (s *session) size() int { return len(s.openID) + len(s.unionID) + len(s.sessionKey) }

func (u *userToken) size() int {
	return len(u.openID) + len(u.unionID) + len(u.scope) + len(u.refreshToken) + len(u.accessToken)
}

// exchange makes one login, unless one with the same code is in the air or remembered,
// or the account's logins fail anyway. What WeChat says of a code holds for the account
// whatever its secret, so the secret is not part of the key.
func exchange[T interface{ size() int }](
	ctx context.Context, x *exchanges, name string, cfg *config, a api, code string,
	call func(context.Context, endpoint, string) (T, error),
) (none T, err error) {
	key := digest(cfg.ID, string(a), code)
	got, err := x.logins.Do(ctx, key, func(ctx context.Context) (any, int, error) {
		leave, err := x.enter(ctx, name, cfg, a, key)
		if err != nil {
			return nil, 0, err
		}
		x.metrics.inFlight.Inc()
		got, err := call(ctx, cfg.endpoint(), code)
		x.metrics.inFlight.Dec()
		p := problemOf(err)
		leave(p)
		if err == nil {
			x.found(key)
			return got, outcomeSize + got.size(), nil
		}
		if p != nil {
			err = x.recallLost(key, p)
		}
		return nil, memorySize(p), err
	})
	x.metrics.done(a, err)
	if err != nil {
		return none, err
	}
	return got.(T), nil
}

// memorySize is 0 for a problem that says nothing of the code: the next request with it
// asks WeChat again.
func memorySize(p *problem) int {
	if p == nil || p.errcode == 0 || p.class != classCode && p.class != classUser && p.class != classAnswer {
		return 0
	}
	return outcomeSize + len(p.detail) + len(p.rid) + len(p.errmsg)
}

// found forgets that the answer to a code was lost: it was given now.
func (x *exchanges) found(key digested) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.lost, key)
}

// recallLost notes that a code was sent and its answer lost, and says so where WeChat
// does not take the code when it is sent again.
func (x *exchanges) recallLost(key digested, p *problem) *problem {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.errcode == 0 && !p.noEffect() && len(x.lost) < maxLost {
		x.lost[key] = time.Now()
		time.AfterFunc(lostMemory, func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			delete(x.lost, key)
		})
	}
	at, lost := x.lost[key]
	if !lost || p.class != classCode {
		return p
	}
	told := *p
	told.detail = fmt.Sprintf("this very code was sent from here, and its answer was lost %s ago", max(time.Second, time.Since(at).Round(time.Second)))
	return &told
}

// enter waits for a place, no longer than request_timeout. leave has to follow, with what
// the call ended in. Where the account's logins fail anyway, or no place comes free, the
// error is a local problem.
func (x *exchanges) enter(ctx context.Context, name string, cfg *config, a api, key digested) (leave func(*problem), err error) {
	account, h := x.healthOf(name, cfg, a)
	if _, p := x.admit(h, key, false); p != nil {
		return nil, p
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.RequestTimeout)
	defer cancel()
	noPlace := &problem{rule: ruleNoPlace, local: true, hadNoEffect: true}
	if account.places.Acquire(ctx, 1) != nil {
		return nil, noPlace
	}
	if x.places.Acquire(ctx, 1) != nil {
		account.places.Release(1)
		return nil, noPlace
	}
	release := func() {
		x.places.Release(1)
		account.places.Release(1)
	}
	// The account may have failed while this login waited for its place.
	tries, p := x.admit(h, key, true)
	if p != nil {
		release()
		return nil, p
	}
	return func(p *problem) {
		release()
		if x.note(h, key, tries, p) {
			x.log.Warn("WeChat was asked for a login in vain", append([]any{"account", name, "api", string(a)}, p.logFields()...)...)
		} else if p != nil {
			x.log.Debug("a login failed", append([]any{"account", name, "api", string(a)}, p.logFields()...)...)
		}
	}, nil
}

// healthOf returns what is known of an account and its calls of one API.
func (x *exchanges) healthOf(name string, cfg *config, a api) (*exchanger, *health) {
	x.mu.Lock()
	defer x.mu.Unlock()
	account := x.accounts[name]
	if account == nil {
		account = &exchanger{places: semaphore.NewWeighted(maxExchanges), health: make(map[api]*health)}
		x.accounts[name] = account
	}
	account.appid = historyKey(cfg)
	if account.health[a] == nil {
		account.health[a] = &health{}
	}
	return account, account.health[a]
}

// admit returns the problem for which a login is not made: those before it failed, and
// another one tries whether that is mended, or did so just now. With begin the login is
// made if there is none, and tries says that it is the one that tries.
func (x *exchanges) admit(h *health, key digested, begin bool) (tries bool, refused *problem) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if h.last == key && h.problem.errcode != 0 && h.failed > 0 && now.Before(h.next) {
		told := h.problem.remembered(h.at, h.next)
		told.local, told.hadNoEffect = true, true
		return false, told
	}
	if h.failed < failuresInARow || now.Sub(h.succeeded) < successCounts || now.Sub(h.next) > failureAge {
		return false, nil
	}
	if free := h.next.Add(-triesSaved * tryPause); h.trying || now.Before(free) {
		next := free
		if h.trying {
			next = now
		}
		told := h.problem.remembered(h.at, next)
		told.local, told.hadNoEffect = true, true
		told.meaning = "its last logins failed, and one at a time tries again: " + told.meaning
		return false, told
	}
	if begin {
		h.trying = true
		if h.next.Before(now) {
			h.next = now
		}
		h.next = h.next.Add(tryPause)
	}
	return begin, nil
}

// note takes note of what a call ended in, p being nil if it succeeded, and reports
// whether that is to be logged. A code or a user that WeChat refuses is the account's
// success, but for 45011, which may be the appid's limit.
func (x *exchanges) note(h *health, key digested, tried bool, p *problem) (log bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if tried {
		h.trying = false
	}
	if p == nil || p.class == classCode || p.class == classUser && p.errcode != errcodeMinuteQuota {
		h.failed, h.succeeded = 0, now
		return false
	}
	if p.errcode == 0 || h.failed == 0 || h.last != key || tried {
		h.failed++ // what is refused of one code again and again is one failure
	}
	h.problem, h.at, h.last = p, now, key
	if h.failed == failuresInARow {
		h.next = now.Add(time.Second + triesSaved*tryPause)
	} else if !now.Before(h.next) {
		h.next = now.Add(tryPause)
	}
	if log = now.Sub(h.logged) >= loginLogInterval; log {
		h.logged = now
	}
	return log
}

// mended forgets the failures of an account's logins, also of those in the air: its
// configuration was written.
func (x *exchanges) mended(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if account := x.accounts[name]; account != nil {
		clear(account.health)
	}
}

// forget forgets an account that was deleted.
func (x *exchanges) forget(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.accounts, name)
}

// quotaCleared does what mended does for all accounts of an appid.
func (x *exchanges) quotaCleared(appid string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, account := range x.accounts {
		if account.appid == appid {
			clear(account.health)
		}
	}
}

// clear sets the counters of the account's API calls back to zero, unless WeChat was
// asked for it within clearingMemory. When that was done it calls cleared, also when the
// request that asked for it is gone. A write of the configuration ends the memory of a
// refusal, and not that of a clearing.
func (x *exchanges) clear(ctx context.Context, name string, cfg *config, cleared func()) error {
	_, h := x.healthOf(name, cfg, apiClearQuota)
	_, err := x.clearings.Do(ctx, cfg.ID, func(ctx context.Context) (none struct{}, size int, err error) {
		if p := x.refusedClearing(h); p != nil {
			return none, 0, p
		}
		err = x.client.clearQuota(ctx, cfg.endpoint())
		p := problemOf(err)
		if p != nil {
			x.log.Warn("the quota was not cleared", append([]any{"account", name}, p.logFields()...)...)
		} else if err == nil {
			x.log.Info("the quota was cleared", "account", name, "appid", cfg.AppID)
			x.quotaCleared(historyKey(cfg))
			cleared()
		}
		if p.noEffect() {
			x.refuseClearings(h, p)
			return none, 0, err
		}
		return none, outcomeSize, err
	})
	return err
}

// clearingStands reports whether what a clearing ended in is the answer for
// clearingMemory: WeChat has cleared the quota or refused to, or may have cleared it
// although the answer was lost.
func clearingStands(err error) bool {
	p := problemOf(err)
	return err == nil || p != nil && (p.errcode != 0 || !p.noEffect())
}

// refusedClearing returns WeChat's refusal of a clearing less than clearingMemory ago.
func (x *exchanges) refusedClearing(h *health) *problem {
	x.mu.Lock()
	defer x.mu.Unlock()
	if time.Now().Before(h.next) {
		return h.problem.remembered(h.next.Add(-clearingMemory), h.next)
	}
	return nil
}

// refuseClearings remembers that WeChat refused a clearing.
func (x *exchanges) refuseClearings(h *health, p *problem) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if clearingStands(p) {
		h.problem, h.next = p, time.Now().Add(clearingMemory)
	}
}

// digest is a key made of texts that must not be seen.
func digest(texts ...string) digested {
	h := sha256.New()
	var length [8]byte
	for _, text := range texts {
		binary.BigEndian.PutUint64(length[:], uint64(len(text)))
		_, _ = h.Write(length[:]) // a hash takes everything
		_, _ = h.Write([]byte(text))
	}
	return digested(h.Sum(nil))
}
