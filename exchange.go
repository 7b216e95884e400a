package wechat

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"
)

const (
	// maxExchanges is how many logins of a mount are in flight.
	maxExchanges = 256

	// exchangeMemory is how long a login's outcome is given to whoever sends the same
	// code: a client's retry or a double tap. Not longer, because a code that works
	// once is a protection.
	exchangeMemory = 10 * time.Second

	// clearingMemory is the same for a clearing of the quota, of which WeChat allows
	// ten a month.
	clearingMemory = 60 * time.Second

	// personMemory and transientMemory are how long an account's logins are answered
	// with a failure that is not of one code: one that a person must mend, and one
	// that passes by itself.
	personMemory    = 5 * time.Second
	transientMemory = time.Second

	// outcomeSize is about what an outcome takes in memory besides its texts, in bytes.
	outcomeSize = 300
)

// exchanges makes the calls that take an account's AppSecret and have nothing to do
// with its token: logins, and the clearing of its quota. Nothing of it is stored, and
// nothing of it touches the token.
type exchanges struct {
	log       hclog.Logger
	client    *client
	metrics   *exchangeCounters
	logins    *flights
	clearings *flights
	failures  failures
}

// newExchanges returns the exchanges of a mount, which end with ctx.
func newExchanges(ctx context.Context, log hclog.Logger, c *client, counters *exchangeCounters) *exchanges {
	return &exchanges{
		log: log, client: c, metrics: counters,
		logins:    newFlights(ctx, semaphore.NewWeighted(maxExchanges), exchangeMemory),
		clearings: newFlights(ctx, nil, clearingMemory),
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
// or the account's logins fail anyway.
func exchange[T interface{ size() int }](
	ctx context.Context, x *exchanges, name string, cfg *config, a api, code string,
	call func(context.Context, endpoint, string) (T, error),
) (none T, err error) {
	account := digest(cfg.ID, cfg.AppID, cfg.Secret, cfg.BaseURL, cfg.ProxyURL, cfg.CAPEM)
	var probing bool
	begin := func() (err error) {
		probing, err = x.failures.admit(account)
		return err
	}
	got, err := x.logins.do(ctx, digest(string(account[:]), string(a), code), cfg.RequestTimeout, begin, func(ctx context.Context) outcome {
		if !probing { // the account may have failed while this one waited for its place
			if err := x.failures.current(account); err != nil {
				return outcome{err: err}
			}
		}
		x.metrics.inFlight.Inc()
		got, err := call(ctx, cfg.endpoint(), code)
		x.metrics.inFlight.Dec()
		p := problemOf(err)
		x.report(name, a, p, x.failures.note(account, cfg, p))
		switch {
		case err == nil:
			return outcome{result: got, kept: true, size: outcomeSize + got.size()}
		case p != nil && p.errcode != 0 && memoryOf(p) == 0:
			return outcome{err: err, kept: true, size: outcomeSize + len(p.detail) + len(p.rid) + len(p.errmsg)}
		}
		return outcome{err: err}
	})
	x.metrics.done(a, err)
	if err != nil {
		return none, err
	}
	return got.(T), nil
}

// clear sets the counters of the account's API calls back to zero, unless WeChat was
// asked for it within clearingMemory. When that was done it calls cleared, whether
// somebody still waits for the clearing or not.
func (x *exchanges) clear(ctx context.Context, name string, cfg *config, cleared func()) error {
	account := digest(cfg.ID, cfg.AppID, cfg.Secret, cfg.BaseURL, cfg.ProxyURL, cfg.CAPEM)
	_, err := x.clearings.do(ctx, account, cfg.RequestTimeout, func() error { return nil }, func(ctx context.Context) outcome {
		err := x.client.clearQuota(ctx, cfg.endpoint())
		p := problemOf(err)
		if p != nil {
			x.log.Warn("the quota was not cleared", append([]any{"account", name}, p.logFields()...)...)
		} else if err == nil {
			x.log.Info("the quota was cleared", "account", name, "appid", cfg.AppID)
			x.failures.quotaCleared(historyKey(cfg))
			cleared()
		}
		return outcome{err: err, kept: clearingStands(err), size: outcomeSize}
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

// report writes what a login ended in to the server log, where it has what callers do
// not see. What is of one code is for who looks closely: there may be many of them.
func (x *exchanges) report(name string, a api, p *problem, begins bool) {
	if p == nil {
		return
	}
	fields := append([]any{"account", name, "api", string(a)}, p.logFields()...)
	if begins {
		x.log.Warn("WeChat was asked for a login in vain", fields...)
	} else {
		x.log.Debug("a login failed", fields...)
	}
}

// digest is a key made of texts that nobody may see.
func digest(texts ...string) flightKey {
	h := sha256.New()
	var length [8]byte
	for _, text := range texts {
		binary.BigEndian.PutUint64(length[:], uint64(len(text)))
		_, _ = h.Write(length[:]) // a hash takes everything
		_, _ = h.Write([]byte(text))
	}
	return flightKey(h.Sum(nil))
}

// memoryOf is how long all logins of an account are answered with this problem, zero
// if it says nothing of the next one. That is so for what is of one code or user, and
// for an errcode that nobody documents.
func memoryOf(p *problem) time.Duration {
	switch p.class {
	case classCredentials, classAdmission, classHuman, classAccount, classQuota, classBug:
		return personMemory
	case classTransient:
		return transientMemory
	case classUnreachable, classAnswer:
		if p.errcode == 0 {
			return transientMemory
		}
	}
	return 0
}

// mayBeAlone reports whether p says something of the next login only if the one before
// failed, too: an answer that was lost, or is not WeChat's. The code may still be good,
// and the next attempt get through.
func mayBeAlone(p *problem) bool {
	return p.class == classAnswer || p.class == classUnreachable && !p.noEffect()
}

// failures remembers of which accounts the logins fail whatever the code, so that a
// storm of logins with a wrong secret is not a storm of calls. The zero value is
// ready for use.
type failures struct {
	mu    sync.Mutex
	all   map[flightKey]*loginFailure // by account
	swept time.Time                   // when what is long over was dropped last
}

type loginFailure struct {
	appid   string    // the key of its history, see historyKey
	problem *problem  // nil where nothing is refused, and only the log is spared
	failing bool      // the last login failed
	until   time.Time // how long logins are refused with problem
	at      time.Time // when a login failed last
	logged  time.Time
}

const (
	// failureAge is how long a failure is known that no login has met again. As long
	// as it is, a burst of logins is not a burst of calls.
	failureAge = time.Minute

	// loginLogInterval is how often the same failure of an account's logins is
	// logged. It is no longer than failureAge.
	loginLogInterval = time.Minute
)

// over reports whether it is known no longer.
func (l *loginFailure) over(now time.Time) bool { return now.Sub(l.at) > failureAge }

// known returns the failure of an account's logins, nil if there was none or it is
// over. The caller holds the lock.
func (f *failures) known(account flightKey, now time.Time) *loginFailure {
	if last := f.all[account]; last != nil && !last.over(now) {
		return last
	}
	return nil
}

// admit says whether a login may be made. When a failure has been remembered for long
// enough, one login tries whether it is mended, and the others are refused until it
// has told, or is late to.
func (f *failures) admit(account flightKey) (probing bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	last := f.known(account, now)
	switch {
	case last == nil || last.problem == nil:
		return false, nil
	case now.Before(last.until):
		return false, last.problem
	}
	last.until = now.Add(memoryOf(last.problem))
	return true, nil
}

// current returns the failure that the account's logins are answered with now.
func (f *failures) current(account flightKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last := f.all[account]; last != nil && last.problem != nil && time.Now().Before(last.until) {
		return last.problem
	}
	return nil
}

// note takes note of what a call ended in, p being nil if it succeeded, and reports
// whether the account's logins begin to fail with that.
func (f *failures) note(account flightKey, cfg *config, p *problem) (begins bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.sweep(now)
	last := f.known(account, now)
	if p == nil || p.class == classCode || p.class == classUser {
		if last != nil { // WeChat accepts the account: what stays is when it was logged
			last.problem, last.failing = nil, false
		}
		return false
	}
	if f.all == nil {
		f.all = make(map[flightKey]*loginFailure)
	}
	if last == nil {
		last = &loginFailure{appid: historyKey(cfg)}
		f.all[account] = last
	}
	begins = now.Sub(last.logged) >= loginLogInterval
	if memory := memoryOf(p); memory > 0 && (last.failing || !mayBeAlone(p)) {
		begins = begins || last.problem != nil && last.problem.errcode != p.errcode
		last.problem, last.until = p, now.Add(memory)
	}
	last.failing, last.at = true, now
	if begins {
		last.logged = now
	}
	return begins
}

// quotaCleared ends the waits for the daily quota of the accounts that have an appid.
func (f *failures) quotaCleared(appid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, last := range f.all {
		if last.appid == appid && isQuota(last.problem) {
			last.problem, last.failing = nil, false
		}
	}
}

// sweep drops what is over. The caller holds the lock.
func (f *failures) sweep(now time.Time) {
	if now.Sub(f.swept) < failureAge {
		return
	}
	f.swept = now
	for account, last := range f.all {
		if last.over(now) {
			delete(f.all, account)
		}
	}
}
