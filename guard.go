package wechat

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"
)

// lateWrites is how long after the start of an instance of the mount a write of an
// earlier one may still be carried out: a closed instance begins none, and gives one up
// after two storage operations and four calls, see detached.
const lateWrites = 2*storageTimeout + 4*maxRequestTimeout + 2*time.Minute

// guard is the record in the write-ahead log of a forced call that an instance makes
// within lateWrites of its start. Storage cannot compare before it writes, so the history
// of an earlier instance may still replace the one that holds the call, and after a crash
// that history would agree with the token that the call has killed. No other instance
// writes to this entry: the next to load the history puts the call back.
type guard struct {
	Key   string    `json:"history"`        // of the history in storage
	At    time.Time `json:"at"`             // when the call reaches WeChat at the latest
	Epoch int64     `json:"epoch"`          // the one that it begins
	Leak  *leak     `json:"leak,omitempty"` // the leak response that it is made for, if any
}

// store writes g, and returns the ID of its entry.
func (g *guard) store(ctx context.Context, s logical.Storage) (id string, err error) {
	if id, err = framework.PutWAL(ctx, s, walForced, g); err != nil {
		withdrawGuard(ctx, s, id) // it may have been written all the same
	}
	return id, err
}

// withdrawGuard takes the record with this ID back: no call was made, or it certainly did
// nothing. Where storage does not remove it, it is left as one of no call.
func withdrawGuard(ctx context.Context, s logical.Storage, id string) {
	if id == "" || framework.DeleteWAL(ctx, s, id) == nil {
		return
	}
	// By the time.Now that the SDK compares it with.
	none, err := logical.StorageEntryJSON(framework.WALPrefix+id, &framework.WALEntry{Kind: walForced, Data: &guard{}, CreatedAt: time.Now().UTC().Unix()})
	if err == nil {
		_ = s.Put(ctx, none) // what stays costs one normal call, and counts for the day's budget
	}
}

// guards are the forced calls that earlier instances have recorded, and the leak
// responses of builds before this one.
type guards struct {
	end     time.Time           // of lateWrites, by the steady clock
	reading *semaphore.Weighted // held while they are read from storage
	read    *[]guard            // guarded by reading; nil until then
	leaks   []olderLeak         // set together with read, and not changed after
}

func newGuards() *guards {
	return &guards{end: time.Now().Add(lateWrites), reading: semaphore.NewWeighted(1)}
}

// needed reports whether a write of an earlier instance may still be under way.
func (g *guards) needed() bool { return time.Now().Before(g.end) }

// of returns the records for the history at key. The log is read once: what this instance
// records itself is in its memory.
func (g *guards) of(ctx context.Context, s logical.Storage, key string) ([]guard, error) {
	if err := g.reading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer g.reading.Release(1)
	if g.read == nil {
		found, leaks, err := readGuards(ctx, s)
		if err != nil {
			return nil, err
		}
		g.read, g.leaks = &found, leaks
	}
	var own []guard
	for _, one := range *g.read {
		if one.Key == key {
			own = append(own, one)
		}
	}
	return own, nil
}

func readGuards(ctx context.Context, s logical.Storage) (all []guard, leaks []olderLeak, err error) {
	ids, err := framework.ListWAL(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		raw, err := s.Get(ctx, framework.WALPrefix+id)
		if err != nil {
			return nil, nil, err
		}
		var entry framework.WALEntry
		if raw == nil || raw.DecodeJSON(&entry) != nil {
			continue // one that cannot be decoded keeps none of the others back
		}
		var one guard
		var r olderLeak
		switch {
		case entry.Kind == walForced && decodeWAL(entry.Data, &one) == nil:
			all = append(all, one)
		case entry.Kind == walRevocation && decodeWAL(entry.Data, &r) == nil:
			leaks = append(leaks, r)
		}
	}
	return all, leaks, nil
}
