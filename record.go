package wechat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// record is all that storage knows of one credential. One entry holds it, so that no crash
// parts the token from the fence that decides over it.
type record struct {
	Version int `json:"version"`
	kept.Credential
	ledger
}

// ledger is what a record holds besides the credential.
type ledger struct {
	// Fence is a random number that is stored before each forced call. The credential is
	// handed out only while Named, the fence under which the issuer last named it, is
	// the same: whatever a crash or a lost answer leaves behind, a token that a forced
	// call may have killed does not name the fence of that call. No two calls have the
	// same, whatever is undone, lost or written late.
	Fence int64 `json:"fence,omitempty"`
	Named int64 `json:"named,omitempty"`

	// Forced holds the latest forced calls that took effect or may have, as many as a day
	// allows, in the order in which they were begun.
	Forced []forcedCall `json:"forced,omitempty"`

	// Void are the fences of calls that certainly had no effect, and whose guards storage
	// may still hold.
	Void []int64 `json:"void,omitempty"`

	// Leak is the answer to a leak that is not complete; RevokedAt is when the last one
	// was.
	Leak      *leak     `json:"leak,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`

	// Names are the accounts whose credentials the issuer has accepted: they share the
	// token. When the last of them is gone, so is the record, and that of each ticket.
	Names map[string]admission `json:"names,omitempty"`
}

// forcedCall is one forced refresh.
type forcedCall struct {
	At    time.Time `json:"at"` // when it reached the issuer at the latest
	Fence int64     `json:"fence"`
}

// admission says which configuration of a name the issuer accepted last.
type admission struct {
	ID          string `json:"id"`          // its config.ID
	Credentials string `json:"credentials"` // its config.Credentials
}

// earlierValues is how many of the credentials before the present one are remembered, to
// know a report of one of them.
const earlierValues = 8

// state is what memory knows of a credential. It is replaced whole, never changed, so that
// readers take no lock.
type state struct {
	kept.State
	ledger

	readAt   uint64   // holder.changes when it was read
	stored   *record  // what storage is known to hold; nil if that is not known
	unstored *failure // the last attempt to store it, if that failed

	// Reports of the present credential by which the issuer stood.
	rejections    int
	lastRejection time.Time

	earlier [][sha256.Size]byte // digests of the values before, the latest first
}

// at is the state by the clock of now. st may be nil. Every read passes here, so a state that
// stays as it is is not copied.
func (st *state) at(now kept.Moment) *state {
	if st == nil || st.InEra(now) {
		return st
	}
	next := *st
	next.State = st.At(now)
	return &next
}

// record is the state as storage is to hold it.
func (st *state) record() *record {
	return &record{Version: schemaVersion, Credential: st.Credential, ledger: st.ledger}
}

// storable reports whether storage is to be told of the state.
func (st *state) storable() bool {
	if st.stored == nil {
		return true
	}
	old, now := *st.stored, *st.record()
	if now.Stored(old.Credential) {
		now.Credential = old.Credential
	}
	a, errA := json.Marshal(old)
	b, errB := json.Marshal(now)
	return errA != nil || errB != nil || !bytes.Equal(a, b)
}

// has reports whether the credential is that of the account too.
func (st *state) has(name string, cfg *config) bool {
	return st != nil && st.Names[name].ID == cfg.ID
}

// proven reports whether the issuer has accepted the account's credentials as they are.
func (st *state) proven(name string, cfg *config) bool {
	return st.has(name, cfg) && st.Names[name].Credentials == cfg.Credentials
}

// admit adds a name whose credentials the issuer has accepted.
func (l *ledger) admit(name string, cfg *config) {
	a := admission{cfg.ID, cfg.Credentials}
	if l.Names[name] == a {
		return
	}
	names := maps.Clone(l.Names)
	if names == nil {
		names = make(map[string]admission)
	}
	names[name] = a
	l.Names = names
}

// bring takes in a leak response that an account brings along from another upstream, with
// the forced call that the issuer counts whatever way it came.
func (l *ledger) bring(moved leak) {
	if moved.Left == 0 || l.Leak != nil || !l.RevokedAt.Before(moved.Requested) {
		return
	}
	if !moved.Called.IsZero() && len(l.Forced) == 0 {
		l.Forced = []forcedCall{{At: moved.Called, Fence: newFence()}}
	}
	moved.begunAt(l.Forced)
	l.Leak = &moved
}

// begunAt finds the first forced call of a leak response that does not name it: it comes from
// another record, or from an earlier build.
func (l *leak) begunAt(forced []forcedCall) {
	l.First = 0
	if i := slices.IndexFunc(forced, func(f forcedCall) bool { return !f.At.Before(l.Requested) }); i >= 0 {
		l.First = forced[i].Fence
	}
}

// without is the state that a name has left. The last to go takes the credential with it;
// the forced calls stay for their day.
func (st *state) without(name string) *state {
	next := *st
	next.Names = maps.Clone(st.Names)
	delete(next.Names, name)
	if len(next.Names) > 0 {
		return &next
	}
	return &state{ledger: ledger{Fence: st.Fence, Forced: st.Forced, Void: st.Void}, readAt: st.readAt, stored: st.stored}
}

// empty reports whether nothing of the record is worth keeping.
func (r *record) empty(now time.Time) bool {
	return r.Value == "" && len(r.Names) == 0 && r.Leak == nil && len(lately(r.Forced, now)) == 0
}

// is reports whether value is the present credential.
func (st *state) is(value string) bool { return value != "" && st.Value == value }

// was reports whether value is one of the credentials before that.
func (st *state) was(value string) bool {
	return value != "" && !st.is(value) && slices.Contains(st.earlier, sha256.Sum256([]byte(value)))
}

// granted is the state after an answer of the issuer.
func (st *state) granted(p kept.Policy, g kept.Grant) *state {
	next := *st
	next.State = st.Granted(p, g, randomFraction())
	next.Named = st.Fence
	if st.Value != g.Value && st.Value != "" {
		next.rejections, next.lastRejection = 0, time.Time{}
		next.earlier = slices.Insert(slices.Clone(st.earlier), 0, sha256.Sum256([]byte(st.Value)))
		next.earlier = next.earlier[:min(len(next.earlier), earlierValues)]
	}
	return &next
}

// early reports whether g was asked for before the issuer would have replaced the credential by
// itself.
func (st *state) early(p kept.Policy, g kept.Grant) bool {
	return st.Value != "" && st.End.Sub(g.Asked.Wall) > p.Overlap
}

// replacedOutside reports whether g shows that another caller has had the credential replaced.
// After a forced call of this engine whose answer was lost, that call may have done so.
func (st *state) replacedOutside(p kept.Policy, g kept.Grant) bool {
	return st.Value != g.Value && st.early(p, g) && !st.unanswered()
}

// unanswered reports whether the issuer has named no credential since the last forced call:
// its answer was lost, or is still to come.
func (st *state) unanswered() bool { return st.Named != st.Fence }

// readRecord returns the record at key, nil if there is none.
func readRecord(ctx context.Context, s logical.Storage, key string) (*record, error) {
	r := &record{}
	found, err := readEntry(ctx, s, key, r)
	if err != nil || !found {
		return nil, err
	}
	return r, nil
}

// lately returns the forced calls of the last day. One a day ahead is of a clock that was
// wrong altogether.
func lately(calls []forcedCall, now time.Time) []forcedCall {
	return slices.DeleteFunc(slices.Clone(calls), func(f forcedCall) bool { return now.Sub(f.At).Abs() >= day })
}
