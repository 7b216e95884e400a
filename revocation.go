package wechat

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// revocationAge is how long the second forced refresh of a revocation is tried
// for.
const revocationAge = day

// The distances of a revocation's attempts. One that gets the same token again,
// or an answer that does not tell what became of it, counts for the day's budget: a day
// of them leaves something of it.
var (
	backoffRevocation = backoff{First: forcedSpacing, Most: 10 * time.Minute}
	backoffCounted    = backoff{First: forcedSpacing, Most: 4 * time.Hour}
)

// revocation is the record of a leak response that is not complete: the token has to
// be replaced by force until it was Target times. It stands in the write-ahead log,
// which keeps it from being forgotten whatever happens.
type revocation struct {
	Name      string    `json:"name"`
	AccountID string    `json:"account_id"`
	Target    int       `json:"target"` // of token.Forced
	Requested time.Time `json:"requested"`

	// Epoch is the one that the first of the two forced calls began. As long as the
	// history of the appid does not hold it, that call was never made, or certainly
	// did nothing, and nothing is to follow. 0 stands for a call that is known to
	// have been made.
	Epoch int64 `json:"epoch,omitempty"`

	// In memory only, guarded by the account's lock.
	walID    string
	next     time.Time // no attempt before this
	giveUp   time.Time // no attempt after this, by the clock that nobody can set
	failures int       // in a row, of attempts that certainly did nothing
	quota    bool      // the last failure was that the daily quota is used up
}

// announce writes r into the write-ahead log.
func (r *revocation) announce(ctx context.Context, s logical.Storage) (err error) {
	r.giveUp = time.Now().Add(revocationAge)
	if r.walID, err = framework.PutWAL(ctx, s, walRevocation, r); err != nil && r.walID != "" {
		// The entry may have been written all the same.
		_ = framework.DeleteWAL(ctx, s, r.walID)
	}
	return err
}

// withdraw takes r out of the write-ahead log.
func (r *revocation) withdraw(ctx context.Context, s logical.Storage) error {
	return framework.DeleteWAL(ctx, s, r.walID)
}

// expired reports whether r is tried no longer. The clock that can be set decides
// only once, when r is read.
func (r *revocation) expired() bool { return time.Now().After(r.giveUp) }

// keepDistance sets the next attempt by the forced calls that ap, whose token is to be
// revoked, has seen since the first. Storage holds them: no restart makes them fewer.
func (r *revocation) keepDistance(ap *appid) {
	now, since := wallClock(), r.Requested
	if since.After(now) {
		since = time.Time{} // the clock was set back since: all that is known counts
	}
	last, calls := ap.forcedSince(r.Epoch, since)
	distance := backoffCounted.After(max(1, calls), randomFraction())
	if last.IsZero() {
		last = now
	}
	if last.After(now) {
		last = now // the clock was set back since
	}
	r.next, r.failures, r.quota = last.Add(distance), 0, false
}

// retry sets the next attempt after one that ended in err and certainly did nothing.
func (r *revocation) retry(err error) {
	r.failures++
	r.quota = isQuota(problemOf(err))
	r.next = wallClock().Add(backoffRevocation.After(r.failures, randomFraction()))
}

// retryNow ends the wait for what a person has mended, but not the one between two
// forced calls.
func (r *revocation) retryNow() {
	r.next, r.failures, r.quota = wallClock(), 0, false
	if second := r.Requested.Add(forcedSpacing); r.next.Before(second) && !r.next.Before(r.Requested) {
		r.next = second
	}
}

// equal reports whether r and the other are of the same request.
func (r *revocation) equal(other *revocation) bool {
	return r != nil && r.Name == other.Name && r.AccountID == other.AccountID && r.Requested.Equal(other.Requested)
}

// readRevocations reads those of the write-ahead log's entries that are revocations.
// One that cannot be read keeps none of the others back.
func readRevocations(ctx context.Context, s logical.Storage, ids []string) ([]*revocation, error) {
	var all []*revocation
	var errs []error
	for _, id := range ids {
		entry, err := framework.GetWAL(ctx, s, id)
		if err != nil || entry == nil || entry.Kind != walRevocation {
			errs = append(errs, err)
			continue
		}
		r := &revocation{}
		if err := decodeWAL(entry.Data, r); err != nil {
			errs = append(errs, err)
			continue
		}
		r.walID = id
		r.giveUp = time.Now().Add(revocationAge - max(0, wallClock().Sub(r.Requested)))
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

// listRevocations reads all revocations that stand in the write-ahead log.
func listRevocations(ctx context.Context, s logical.Storage) ([]*revocation, error) {
	ids, err := framework.ListWAL(ctx, s)
	if err != nil {
		return nil, err
	}
	return readRevocations(ctx, s, ids)
}

// findRevocation returns the entry of the write-ahead log that says the same as r,
// which Vault hands out without its ID. It is nil if there is none any more.
func findRevocation(ctx context.Context, s logical.Storage, r *revocation) (*revocation, error) {
	all, err := listRevocations(ctx, s)
	for _, entry := range all {
		if entry.equal(r) {
			return entry, nil
		}
	}
	return nil, err
}

// open reports whether a forced refresh of the account whose state is st is still to
// come by r.
func (r *revocation) open(name string, st *state) bool {
	return r.Name == name && r.AccountID == st.accountID && st.forced() < r.Target && !r.expired() &&
		(r.Epoch == 0 || st.appid.begun(r.Epoch))
}

// openRevocation returns the latest revocation in the write-ahead log by which a
// forced refresh of the account whose state is st is still to come. With nil the
// error tells what could not be read.
func openRevocation(ctx context.Context, s logical.Storage, name string, st *state) (*revocation, error) {
	all, err := listRevocations(ctx, s)
	var latest *revocation
	for _, r := range all {
		if r.open(name, st) && (latest == nil || latest.Requested.Before(r.Requested)) {
			latest = r
		}
	}
	return latest, err
}
