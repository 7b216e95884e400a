package wechat

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"
)

// lateWrites is how long after the start of an instance of the mount a write of an earlier
// one may still be carried out. A closed instance begins no write, and gives up one in
// progress at the deadline of detached.
const lateWrites = 2*storageTimeout + 4*maxRequestTimeout + 2*time.Minute

// guard is a note in the write-ahead log of a forced call that is made within lateWrites of
// the instance's start.
//
// Storage cannot compare before it writes. So an earlier instance, closed but still waiting
// for storage, may write its record over the one that announces the call. If this instance
// then crashed, the record of before would name the voided token under the fence of before.
// Each guard is an entry of its own, which no other instance writes. The next instance to
// load the record finds the guard, sees that the record lacks the call, and sets a new fence.
type guard struct {
	Key   string    `json:"record"`
	At    time.Time `json:"at"` // when the call reaches the issuer at the latest
	Fence int64     `json:"fence"`
	Known []int64   `json:"known,omitempty"` // the fences of the calls before it; by them, guards have an order
	Leak  *leak     `json:"leak,omitempty"`  // of which the call is a step
}

// withdrawGuard removes the entry with this ID: no call was made, or it certainly had no
// effect. It reports whether storage holds it no more.
func withdrawGuard(ctx context.Context, s logical.Storage, id string) bool {
	return id == "" || framework.DeleteWAL(ctx, s, id) == nil
}

// guards are the forced calls that earlier instances noted. Those of this instance are in
// its memory, and in the record.
type guards struct {
	end     atomic.Pointer[time.Time] // of lateWrites, by the steady clock
	reading *semaphore.Weighted       // held while they are read from storage
	read    *noted                    // guarded by reading; nil until then
}

// noted is what the write-ahead log held at the start.
type noted struct {
	guards []guard // in the order of their calls
	leaks  []olderLeak
}

// newGuards begins with the time in which an earlier instance may still write.
func newGuards() *guards {
	g := &guards{reading: semaphore.NewWeighted(1)}
	g.extend()
	return g
}

// extend notes that a write may be under way whose end is not awaited: after a start that of
// an earlier instance, after a failure that of this one.
func (g *guards) extend() {
	end := time.Now().Add(lateWrites)
	g.end.Store(&end)
}

// needed reports whether such a write may still be under way.
func (g *guards) needed() bool { return time.Now().Before(*g.end.Load()) }

// put notes the last forced call of st if that is needed, and returns the ID of the note, ""
// if there is none.
func (g *guards) put(ctx context.Context, s logical.Storage, key string, st *state) (id string, err error) {
	if !g.needed() {
		return "", nil
	}
	// Without the calls before it, the clock alone would tell which of two guards is the later
	// one, and that may have been set in between.
	last := len(st.Forced) - 1
	one := &guard{Key: key, At: st.Forced[last].At, Fence: st.Forced[last].Fence, Leak: st.Leak}
	for _, f := range st.Forced[:last] {
		one.Known = append(one.Known, f.Fence)
	}
	return framework.PutWAL(ctx, s, walGuard, one)
}

// restore puts the calls into r, the record at key, that were noted and that it lacks. The
// fence is then another one, so the token is in doubt, and the issuer is asked.
func (g *guards) restore(ctx context.Context, s logical.Storage, key string, r *record) (changed bool, err error) {
	log, err := g.log(ctx, s)
	if err != nil {
		return false, err
	}
	now := wallClock()
	// A call that the record holds was announced after the guard, and nothing was lost. One
	// of more than a day ago has no token left that it could have voided.
	for _, one := range log.guards {
		known := slices.ContainsFunc(r.Forced, func(f forcedCall) bool { return f.Fence == one.Fence })
		if one.Key == key && !known && !slices.Contains(r.Void, one.Fence) && now.Sub(one.At) < day {
			r.Forced = inOrder(r.Forced, forcedCall{At: one.At, Fence: one.Fence})
			r.Fence, changed = newFence(), true // which no token names
			r.Leak = one.Leak                   // as it was at the last of these calls
		}
	}
	return changed, nil
}

// inOrder puts a call where it belongs among those that are there: the last one tells when the
// next may be made.
func inOrder(calls []forcedCall, one forcedCall) []forcedCall {
	at := slices.IndexFunc(calls, func(f forcedCall) bool { return f.At.After(one.At) })
	if at < 0 {
		at = len(calls)
	}
	return slices.Insert(slices.Clone(calls), at, one)
}

// log returns what the write-ahead log held at the start. It is read once.
func (g *guards) log(ctx context.Context, s logical.Storage) (*noted, error) {
	if err := g.reading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer g.reading.Release(1)
	if g.read == nil {
		found, err := readLog(ctx, s)
		if err != nil {
			return nil, err
		}
		g.read = found
	}
	return g.read, nil
}

// readLog reads the entries of the write-ahead log. One that cannot be decoded keeps none
// of the others back.
func readLog(ctx context.Context, s logical.Storage) (*noted, error) {
	ids, err := framework.ListWAL(ctx, s)
	if err != nil {
		return nil, err
	}
	all := &noted{}
	for _, id := range ids {
		raw, err := s.Get(ctx, framework.WALPrefix+id)
		if err != nil {
			return nil, err
		}
		var entry framework.WALEntry
		if raw == nil || raw.DecodeJSON(&entry) != nil {
			continue
		}
		all.add(&entry)
	}
	slices.SortFunc(all.guards, func(a, b guard) int {
		return cmp.Or(cmp.Compare(len(a.Known), len(b.Known)), a.At.Compare(b.At))
	})
	return all, nil
}

// add takes in one entry. A kind that is unknown here is Vault's rollback to report.
func (n *noted) add(entry *framework.WALEntry) {
	var one guard
	var err error
	switch entry.Kind {
	case walRevocation:
		var l olderLeak
		if decodeWAL(entry.Data, &l) == nil {
			n.leaks = append(n.leaks, l)
		}
		return
	case walGuard:
		err = decodeWAL(entry.Data, &one)
	case walForced:
		one, err = olderGuard(entry.Data)
	default:
		return
	}
	if err == nil {
		n.guards = append(n.guards, one)
	}
}

// olderGuard reads the guard of an earlier build, which kept forced calls in a history of
// their own.
func olderGuard(data any) (guard, error) {
	var older struct {
		Key   string    `json:"history"`
		At    time.Time `json:"at"`
		Epoch int64     `json:"epoch"`
	}
	err := decodeWAL(data, &older)
	identity := storedName(strings.TrimPrefix(older.Key, olderHistories))
	return guard{Key: weixin.recordKey(tokenSlot, identity), At: older.At, Fence: older.Epoch}, err
}
