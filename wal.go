package wechat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// walChange is the kind of the entries that guard a change of an account
	// that takes several writes: its creation, its becoming another account,
	// and its deletion.
	walChange = "change"

	// walRevocation is the kind of the entries that carry a revocation until it
	// is complete.
	walRevocation = "revocation"

	// walMinAge is the age at which Vault hands an entry to rollback. It only
	// spares work: rollback leaves alone what somebody is still at, and a
	// revocation that the background has in hand.
	walMinAge = 10 * time.Second
)

// change is the data of a walChange entry. It names only the account: what is
// to be done follows from what is in storage at the time, so an entry that is
// stale, or is rolled back twice, does no harm.
type change struct {
	Name string `json:"name"`
}

// beginChange announces a change of several writes in the write-ahead log. done
// withdraws the announcement after the last of them.
func (k *keeper) beginChange(ctx context.Context, s logical.Storage, name string) (done func(), err error) {
	id, err := framework.PutWAL(ctx, s, walChange, &change{Name: name})
	if err != nil {
		return nil, fmt.Errorf("the change was not begun: %w", err)
	}
	return func() {
		if err := framework.DeleteWAL(ctx, s, id); err != nil {
			k.log.Warn("a finished change stays in the write-ahead log until Vault drops it", "account", name, "error", err)
		}
	}, nil
}

// rollback finishes what a write-ahead log entry announced. Vault calls it for
// entries older than walMinAge, and drops the entry if it returns nil.
func (b *backend) rollback(ctx context.Context, req *logical.Request, kind string, data any) error {
	if !b.keeper.writable() {
		return errPending // it is the active node's to do
	}
	switch kind {
	case walChange:
		var c change
		if err := decodeWAL(data, &c); err != nil {
			return err
		}
		return b.keeper.reconcile(ctx, req.Storage, c.Name)
	case walRevocation:
		var r revocation
		if err := decodeWAL(data, &r); err != nil {
			return err
		}
		t := b.keeper.tryAcquire(r.Name)
		if t == nil {
			return errPending // the tick does not wait for whoever is busy with it
		}
		defer b.keeper.release(t)
		return b.keeper.resumeRevocation(ctx, req.Storage, t, &r)
	default:
		return fmt.Errorf("the write-ahead log holds an entry of the unknown kind %q: was it written by a newer version of the plugin?", kind)
	}
}

// errPending tells Vault to keep an entry; it does not log that.
var errPending = errors.New("still pending")

// loadRevocations takes up what the write-ahead log's entries hold, so that it
// goes on at once after a start.
func (k *keeper) loadRevocations(s logical.Storage, ids []string) {
	all, err := revocations(k.ctx, s, ids)
	if err != nil {
		k.log.Error("the write-ahead log cannot be read: Vault's tick brings its entries", "error", err)
	}
	for _, r := range all {
		t, err := k.acquire(k.ctx, r.Name)
		if err != nil {
			return // the mount is being closed
		}
		// What is over, or cannot be read, is left to Vault's tick.
		_ = k.resumeRevocation(k.ctx, s, t, r)
		k.release(t)
	}
}

// decodeWAL brings the data of an entry, which Vault hands over as a map, into
// its type.
func decodeWAL(data, into any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}
