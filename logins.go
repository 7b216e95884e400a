package wechat

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/once"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

const (
	// maxLogins and maxMountLogins are how many logins of an account, and of a mount, are
	// in flight: an account that hangs leaves the others their places.
	maxLogins      = 256
	maxMountLogins = 1024

	// loginMemory is how long the outcome of a login is given to requests with the same
	// code: a client's retry or a double tap. Not longer, because a code that works
	// once is a protection.
	loginMemory = 10 * time.Second

	// clearingMemory is loginMemory for a clearing of the quota, of which WeChat allows
	// ten a month.
	clearingMemory = 60 * time.Second

	// maxRemembered is how many outcomes are remembered: two thousand logins a second.
	maxRemembered = 20_000
)

// An account's logins through one API are refused when failuresInARow have failed one
// after the other and none has succeeded for successCounts. After firstTry one of them
// tries whether that is mended, then one at a time, tryPause after each other: with the
// failures that came before, five calls a second at most. A row without a failure for
// failureAge counts no longer.
const (
	failuresInARow = 5
	successCounts  = 2 * time.Second
	firstTry       = time.Second
	tryPause       = 200 * time.Millisecond
	failureAge     = time.Minute

	// loginLogInterval is how often the failures of such logins are logged.
	loginLogInterval = time.Minute
)

// errClosing is what requests get whose call the end of the mount has cut short.
var errClosing = errors.New("the mount is being closed: try again")

// ruleNoPlace is of a login for which there was no place in time.
var ruleNoPlace = rule{
	Class: upstream.ClassQuota, Status: http.StatusServiceUnavailable,
	Meaning: "too many calls of WeChat are in flight", Advice: "try again in some seconds; if it lasts, find out why WeChat answers slowly",
}

// logins makes the calls that take an account's AppSecret and have nothing to do with
// its token: logins, and the clearing of its quota. It stores nothing, and touches
// nothing of the token.
type logins struct {
	log     hclog.Logger
	client  *client
	metrics *metrics

	sessions   *once.Group[codeDigest, *session]
	userTokens *once.Group[codeDigest, *userToken]
	clearings  *once.Group[string, time.Time] // by account ID
	places     *semaphore.Weighted            // of all accounts

	mu       sync.Mutex
	accounts map[string]*loginAccount // guarded by mu, as what they hold
}

// loginAccount is what the logins of one account share.
type loginAccount struct {
	identity string
	places   *semaphore.Weighted
	failing  map[string]*failing
}

// codeDigest stands for an account and a code, which no key or record may show.
type codeDigest [sha256.Size]byte

// newLogins returns the logins of a mount, which end with ctx.
func newLogins(ctx context.Context, log hclog.Logger, c *client, m *metrics) *logins {
	calls, end := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { end(errClosing) })
	return &logins{
		log: log, client: c, metrics: m,
		sessions:   once.New[codeDigest, *session](calls, loginMemory, maxRemembered),
		userTokens: once.New[codeDigest, *userToken](calls, loginMemory, maxRemembered),
		clearings:  once.New[string, time.Time](calls, clearingMemory, maxRemembered),
		places:     semaphore.NewWeighted(maxMountLogins),
		accounts:   make(map[string]*loginAccount),
	}
}

// session exchanges the code of wx.login for the user's session. Errors of WeChat, here
// and in userToken, are a *problem.
func (l *logins) session(ctx context.Context, name string, cfg *config, code string) (*session, error) {
	return login(ctx, l, l.sessions, name, cfg, apiCode2Session, code, l.client.codeToSession)
}

// userToken exchanges the code of a web login for the user's tokens.
func (l *logins) userToken(ctx context.Context, name string, cfg *config, code string) (*userToken, error) {
	return login(ctx, l, l.userTokens, name, cfg, apiOAuth2, code, l.client.userToken)
}

// login answers one login. What WeChat says of a code holds for the account whatever its
// secret, so the key has the account's ID and not the secret. A problem that says nothing
// of the code is not remembered: the next request with it asks WeChat again.
func login[T any](
	ctx context.Context, l *logins, answers *once.Group[codeDigest, T], name string, cfg *config, a string, code string,
	call func(context.Context, endpoint, string) (T, error),
) (T, error) {
	key := codeDigest(sha256.Sum256([]byte(cfg.ID + "\x00" + code)))
	got, err := answers.Do(ctx, key, func(ctx context.Context) (got T, keep bool, err error) {
		err = l.attempt(ctx, name, cfg, a, key, func() error {
			got, err = call(ctx, cfg.endpoint(false), code)
			return err
		})
		p := problemOf(err)
		ofCode := p != nil && p.Errcode != 0 && (p.Class == upstream.ClassCode || p.Class == upstream.ClassUser || p.Class == upstream.ClassAnswer)
		return got, err == nil || ofCode, err
	})
	l.metrics.loggedIn(a, err)
	return got, err
}

// attempt makes the call of one login, unless the account's logins fail anyway or no
// place comes free within request_timeout.
func (l *logins) attempt(ctx context.Context, name string, cfg *config, a string, code codeDigest, call func() error) error {
	account, f := l.of(name, cfg, a)
	if p := f.admit(code, 0); p != nil {
		return p
	}
	leave := l.enter(ctx, account, cfg.RequestTimeout)
	if leave == nil {
		return &problem{Rule: ruleNoPlace, Local: true, HadNoEffect: true}
	}
	defer leave()
	// The account may have failed while this login waited for its place.
	if p := f.admit(code, cfg.RequestTimeout); p != nil {
		return p
	}
	l.metrics.logins.inFlight.Inc()
	err := call()
	l.metrics.logins.inFlight.Dec()
	p := problemOf(err)
	if f.note(code, p, tryPause) {
		l.log.Warn("WeChat was asked for a login in vain", append([]any{"account", name, "api", a}, p.LogFields()...)...)
	} else if p != nil {
		l.log.Debug("a login failed", append([]any{"account", name, "api", a}, p.LogFields()...)...)
	}
	return err
}

// enter waits for a place, no longer than patience, and returns how to leave it, nil if
// none came free.
func (l *logins) enter(ctx context.Context, account *loginAccount, patience time.Duration) (leave func()) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if account.places.Acquire(ctx, 1) == nil {
		if l.places.Acquire(ctx, 1) == nil {
			return func() { l.places.Release(1); account.places.Release(1) }
		}
		account.places.Release(1)
	}
	return nil
}

// of returns an account, and how its calls of one API fail.
func (l *logins) of(name string, cfg *config, a string) (*loginAccount, *failing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	account := l.accounts[name]
	if account == nil {
		account = &loginAccount{places: semaphore.NewWeighted(maxLogins), failing: make(map[string]*failing)}
		l.accounts[name] = account
	}
	account.identity = platformOf(cfg).identity(cfg)
	if account.failing[a] == nil {
		account.failing[a] = &failing{}
	}
	return account, account.failing[a]
}

// mended forgets the failures of the account of this name and of those of this identity: a
// configuration was written, or a quota cleared. A call in
// progress notes its end in a record that is not read any more.
func (l *logins) mended(name, identity string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, account := range l.accounts {
		if other == name || account.identity == identity {
			clear(account.failing)
		}
	}
}

// forget forgets an account that was deleted.
func (l *logins) forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.accounts, name)
}

// clearQuota sets the counters of the account's API calls back to zero, unless WeChat was
// asked for it within clearingMemory, and returns when that was. It calls cleared after
// WeChat has done so, also when the request is gone. A write of the configuration ends
// the memory of a refusal, and not that of a clearing.
func (l *logins) clearQuota(ctx context.Context, name string, cfg *config, cleared func()) (time.Time, error) {
	_, f := l.of(name, cfg, apiClearQuota)
	return l.clearings.Do(ctx, cfg.ID, func(ctx context.Context) (at time.Time, keep bool, err error) {
		if p := f.admit(codeDigest{}, 0); p != nil {
			return at, false, p
		}
		err = l.client.clearQuota(ctx, cfg.endpoint(false))
		p := problemOf(err)
		if p != nil {
			l.log.Warn("the quota was not cleared", append([]any{"account", name}, p.LogFields()...)...)
		} else if err == nil {
			l.log.Info("the quota was cleared", "account", name, "appid", cfg.AppID)
			l.mended(name, platformOf(cfg).identity(cfg))
			cleared()
		}
		if p != nil && p.HadNoEffect && p.Errcode != 0 {
			f.note(codeDigest{}, p, clearingMemory)
		}
		return time.Now(), !upstream.NoEffect(err), err
	})
}

// failing is how an account's calls of one API fail: the last problem, and until when it
// is the answer.
type failing struct {
	mu        sync.Mutex
	row       int        // failed calls, one after the other
	problem   *problem   // of the last, nil if there is none
	code      codeDigest // of the last; zero for a clearing
	at        time.Time  // its end
	until     time.Time  // before, what would fail anyway is not called
	trying    codeDigest // of the call that tries whether it is mended
	succeeded time.Time  // when a call last did
	logged    time.Time
}

// admit returns the answer to a call that is not made, nil where it may be. With a timeout
// the call begins, and where the account's calls fail it is the one that tries.
func (f *failing) admit(code codeDigest, timeout time.Duration) *problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	always := f.row >= failuresInARow && now.Sub(f.succeeded) >= successCounts && now.Sub(f.at) <= failureAge
	repeated := f.problem != nil && f.problem.Errcode != 0 && f.code == code
	if now.Before(f.until) && (always || repeated) {
		told := f.problem.Remembered(f.at, f.until)
		told.Local, told.HadNoEffect = true, true
		if !repeated {
			told.Meaning = "its last logins failed, and one at a time tries again: " + told.Meaning
		}
		return told
	}
	if always && timeout > 0 {
		f.trying, f.until = code, now.Add(timeout)
	}
	return nil
}

// note takes note of what a call ended in, p being nil if it succeeded, and reports
// whether that is to be logged. After a failure it is pause until the next try. A code or
// a user that WeChat refuses is the account's success, but for 45011, which may be the
// appid's limit. What is refused of one code again and again is one failure.
func (f *failing) note(code codeDigest, p *problem, pause time.Duration) (log bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if p == nil || p.Class == upstream.ClassCode || p.Class == upstream.ClassUser && p.Errcode != errcodeMinuteQuota {
		f.row, f.problem, f.until, f.succeeded = 0, nil, now, now
		return false
	}
	if p.Errcode == 0 || f.problem == nil || f.code != code {
		if f.row++; f.row == failuresInARow {
			pause = firstTry
		}
	}
	if f.trying == code || f.until.Before(now.Add(pause)) {
		f.trying, f.until = codeDigest{}, now.Add(pause)
	}
	f.problem, f.code, f.at = p, code, now
	if log = now.Sub(f.logged) >= loginLogInterval; log {
		f.logged = now
	}
	return log
}
