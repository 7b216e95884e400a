package wechat

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
)

// ticketType is a kind of ticket. An account has at most one ticket of each.
type ticketType int

const (
	jsapiTicket ticketType = iota // signs pages for JS-SDK
	cardTicket                    // for coupons and cards
	ticketTypes
)

var ticketTypeNames = [ticketTypes]string{"jsapi", "wx_card"}

// String is the type's name at WeChat.
func (t ticketType) String() string { return ticketTypeNames[t] }

// ticketTypeNamed returns the type that WeChat calls by this name.
func ticketTypeNamed(name string) (ticketType, error) {
	for t, known := range ticketTypeNames {
		if name == known {
			return ticketType(t), nil
		}
	}
	return 0, fmt.Errorf("type must be %s or %s", jsapiTicket, cardTicket)
}

const (
	// ticketPeriod is the usual life of a ticket.
	ticketPeriod = 7200 * time.Second

	// ticketInterval is how often a ticket that is used is compared with WeChat's.
	ticketInterval = 10 * time.Minute

	// ticketOverdue is the age of a confirmation from which on a reader compares the
	// ticket itself: the background is to have done it by then. WeChat still accepts a
	// ticket for an hour after it was replaced.
	ticketOverdue = ticketInterval + time.Minute

	// ticketGrace is how long a ticket is used after WeChat last confirmed it.
	ticketGrace = 2 * time.Hour

	// ticketIdle is how long after its last use a ticket is no longer compared.
	ticketIdle = 2 * time.Hour

	// ticketUseGrain is how exactly the last use is noted: a note at every page view
	// would have the processors wait for one another.
	ticketUseGrain = time.Minute

	// ticketStoreInterval is how old the stored confirmation of a ticket may become:
	// a write at every comparison would tell a restart little more.
	ticketStoreInterval = 30 * time.Minute
)

// ticket is a ticket as it is stored. It is never changed.
type ticket struct {
	Version   int       `json:"version"`
	AccountID string    `json:"account_id"` // the config.ID it belongs to
	Ticket    string    `json:"ticket"`
	RotatedAt time.Time `json:"last_vault_rotation"` // when it was asked for first, in milliseconds; see distinguish

	// As those of a token.
	LatestRotation time.Time `json:"latest_rotation,omitzero"`
	SetBacks       int       `json:"set_backs,omitempty"`

	// ConfirmedAt is when WeChat was asked last and named this ticket. The stored one
	// may be behind by ticketStoreInterval and a comparison: a restart then asks
	// earlier than it had to, and stops earlier to use a ticket that WeChat cannot
	// confirm.
	ConfirmedAt time.Time `json:"confirmed_at"`
}

// ticketFrom is the ticket to keep instead of old, which may be nil, after WeChat
// named value when it was asked at the given time.
func ticketFrom(value string, asked time.Time, accountID string, old *ticket) *ticket {
	asked = asked.UTC().Truncate(time.Millisecond)
	t := &ticket{Version: schemaVersion, AccountID: accountID, Ticket: value, RotatedAt: asked, ConfirmedAt: asked}
	switch {
	case old == nil:
	case old.Ticket == value:
		t.RotatedAt, t.LatestRotation, t.SetBacks = old.RotatedAt, old.LatestRotation, old.SetBacks
	default:
		t.RotatedAt, t.LatestRotation, t.SetBacks = distinguish(asked, old.RotatedAt, old.LatestRotation, old.SetBacks)
	}
	return t
}

// end is when the ticket is no longer used unless WeChat confirms it before.
func (t *ticket) end() time.Time { return t.ConfirmedAt.Add(ticketGrace) }

// toStore reports whether storage, which holds stored, is to be told of the ticket.
func (t *ticket) toStore(stored *ticket) bool {
	return stored == nil || stored.Ticket != t.Ticket || stored.AccountID != t.AccountID ||
		t.ConfirmedAt.Sub(stored.ConfirmedAt).Abs() >= ticketStoreInterval
}

// ticketKey is where an account's ticket of a type is stored.
func ticketKey(kind ticketType, name string) string {
	return storageKey(ticketPrefix+kind.String()+"/", name)
}

// readTicket returns the stored ticket, nil if there is none.
func readTicket(ctx context.Context, s logical.Storage, kind ticketType, name string) (*ticket, error) {
	t := &ticket{}
	found, err := readEntry(ctx, s, ticketKey(kind, name), t)
	if err != nil || !found {
		return nil, err
	}
	return t, nil
}

// ticketState is what is known of one ticket in memory. It is replaced whole, never
// changed, so that readers take no lock.
type ticketState struct {
	accountID string    // the config.ID it belongs to
	ticket    *ticket   // nil: none was ever fetched
	compare   time.Time // when the background compares it with WeChat's

	failure     *failure  // the last attempt, if it failed
	ofToken     bool      // the last attempt failed for want of a token, which has a backoff of its own
	lastSuccess time.Time // of a call, since the plugin started

	stored   *ticket   // what storage is known to hold, nil if that is not known
	storeAt  time.Time // when the ticket is to be stored, zero if it is
	unstored *failure  // the last attempt to store it, if that failed

	asleep bool // nobody used it for ticketIdle: the background leaves it alone
}

// usable reports whether the ticket may be used. One that WeChat confirmed in the
// future is of a clock that was set back since.
func (ts *ticketState) usable(now time.Time) bool {
	return ts.ticket != nil && ts.ticket.end().Sub(now) >= minTTL && ts.ticket.ConfirmedAt.Sub(now) < ticketGrace
}

// servable reports whether the ticket is used as it is, without asking WeChat: one
// that was confirmed lately, or one that could not be and that the background goes on
// asking about in time.
func (ts *ticketState) servable(now time.Time) bool {
	if !ts.usable(now) {
		return false
	}
	age := now.Sub(ts.ticket.ConfirmedAt)
	if age < ticketOverdue && age >= -clockTolerance {
		return true
	}
	f := ts.failure
	switch {
	case f == nil:
		return false
	case ts.ofToken:
		return now.Sub(f.at).Abs() < backgroundLag
	}
	return now.Before(f.next.Add(backgroundLag)) && f.at.Sub(now) < clockTolerance
}

// waits reports whether it is too early for another attempt. What failed for want of a
// token does not wait: the token's own backoff does.
func (ts *ticketState) waits(now time.Time) bool {
	f := ts.failure
	return f != nil && !ts.ofToken && now.Before(f.next) && f.at.Sub(now) < clockTolerance
}

// told is the failure as an answer from memory.
func (ts *ticketState) told() *problem { return ts.failure.Remembered(ts.failure.at, ts.failure.next) }

// ttl returns after how many seconds the ticket should be read again, by the rules of
// a token's.
func (ts *ticketState) ttl(now time.Time, maxTTL time.Duration) int64 {
	ttl := retryTTL
	if due := ts.ticket.ConfirmedAt.Add(ticketInterval); ts.failure == nil && now.Before(due) {
		ttl = min(due.Sub(now), ticketInterval)
	}
	if maxTTL > 0 {
		ttl = min(ttl, maxTTL)
	}
	seconds := int64((max(ttl, minTTL) + time.Second - 1) / time.Second)
	return min(seconds, int64(ts.ticket.end().Sub(now)/time.Second))
}

// wake returns when the background has to look at the ticket, zero if never.
func (ts *ticketState) wake() time.Time {
	at := ts.nextAttempt()
	if !ts.storeAt.IsZero() && (at.IsZero() || ts.storeAt.Before(at)) {
		return ts.storeAt
	}
	return at
}

// nextAttempt returns when the background is to ask WeChat next, zero if never.
func (ts *ticketState) nextAttempt() time.Time {
	f := ts.failure
	switch {
	case ts.asleep:
		return time.Time{}
	case f == nil:
		return ts.compare
	case f.run > quickRetries && !ts.usable(f.next):
		return f.at.Add(max(slowRetry, f.next.Sub(f.at))) // whoever wants it asks before
	}
	return f.next
}

// confirmed is the state after WeChat named value when it was asked at the given time.
func (ts *ticketState) confirmed(value string, asked, now time.Time) *ticketState {
	next := *ts
	next.ticket = ticketFrom(value, asked, ts.accountID, ts.ticket)
	next.failure, next.ofToken, next.lastSuccess, next.asleep = nil, false, now, false
	next.schedule()
	if next.storeAt.IsZero() && next.ticket.toStore(next.stored) {
		next.storeAt = now
	}
	return &next
}

// schedule sets the next comparison. Those of tickets that were fetched together drift
// apart.
func (ts *ticketState) schedule() {
	ts.compare = ts.ticket.ConfirmedAt.Add(time.Duration(float64(ticketInterval) * syncJitter()))
}

// failed is the state after an attempt that ended in p.
func (ts *ticketState) failed(p *problem, ofToken bool, now time.Time) *ticketState {
	next := *ts
	next.failure, next.ofToken, next.asleep = ts.failure.after(p, now), ofToken, false
	return &next
}

// retried is the state in which nothing waits for what failed before.
func (ts *ticketState) retried(now time.Time) *ticketState {
	next := *ts
	if next.failure = nil; ts.failure != nil {
		next.compare = now
	}
	return &next
}

// recheck is the state once the clock was set back to now.
func (ts *ticketState) recheck(now time.Time) *ticketState {
	next := *ts
	next.failure = nil
	if ts.ticket != nil {
		next.compare = now
		if ts.ticket.ConfirmedAt.After(now) {
			confirmed := *ts.ticket
			confirmed.ConfirmedAt = now.UTC().Truncate(time.Millisecond)
			next.ticket = &confirmed
		}
	}
	if !ts.storeAt.IsZero() {
		next.storeAt = now
	}
	return &next
}

// trouble returns what last_error shows, nil if there is none.
func (ts *ticketState) trouble() *failure {
	if ts.failure != nil {
		return ts.failure
	}
	return ts.unstored
}

// health is the ticket's state in one word. One that nobody used for long, and that is
// fetched again at its next use, is pending.
func (ts *ticketState) health(now time.Time) string {
	switch {
	case !ts.usable(now) && ts.failure != nil:
		return stateFailing
	case !ts.usable(now):
		return statePending
	case ts.trouble() != nil:
		return stateDegraded
	}
	return stateHealthy
}

// accountTicket is an account's ticket of one type in memory.
//
// A call of WeChat for it holds its lock, so that at most one is in flight, but for one
// that renewTickets has left behind. That is another lock than the account's, which is taken only for moments: to
// wait for a ticket delays no token.
type accountTicket struct {
	name string // of the account
	kind ticketType
	way  string // of its account

	lock  *semaphore.Weighted
	state atomic.Pointer[ticketState] // nil until it was loaded; stored under lock, and read without
	used  atomic.Int64                // when it was used last, in seconds of Unix time, by ticketUseGrain

	slow atomic.Bool // the last call took slowCall or longer
	job  wake.Job
}

// key says which other tickets the background keeps this one waiting for.
func (t *accountTicket) key() wake.Key {
	return wake.Key{Kind: "ticket", Slow: t.slow.Load(), Way: t.way}
}

// touch notes that the ticket is used.
func (t *accountTicket) touch(now time.Time) {
	at := now.Unix()
	if since := at - t.used.Load(); since < 0 || since >= int64(ticketUseGrain/time.Second) {
		t.used.Store(at)
	}
}

// idle reports whether nobody used the ticket for ticketIdle.
func (t *accountTicket) idle(now time.Time) bool {
	return now.Sub(time.Unix(t.used.Load(), 0)) > ticketIdle+ticketUseGrain
}
