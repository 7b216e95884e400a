package wechat

import (
	"context"

	"github.com/hashicorp/vault/sdk/logical"
)

// configure creates or changes an account. update makes the new configuration
// of the old, which is nil where there is none; with verify WeChat has to
// accept it before anything is stored. An error from WeChat is a *problem.
//
// What makes the account another one takes several writes. The configuration
// is the one that counts: until it is written the whole old state holds, after
// it the old token names another account and is never served. A write-ahead
// log entry sees to it that such a token is also removed.
func (k *keeper) configure(ctx context.Context, s logical.Storage, name string, verify bool, update func(*config) (*config, error)) error {
	t, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return err
	}
	defer k.release(t)
	generation := t.generation.Load() // a change in storage from here on makes the new state stale
	if st != nil {
		generation = st.generation
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	old, err := loadConfig(ctx, s, name)
	if err != nil {
		return err
	}
	cfg, err := update(old)
	if err != nil {
		return err
	}
	stored, err := readToken(ctx, s, name)
	if err != nil {
		return err
	}
	var g *tokenAnswer
	tok := stored
	if verify {
		leave, err := k.gates.enter(ctx, cfg.AppID, normalCall)
		if err != nil {
			return err
		}
		defer leave()
		if g, tok, err = k.ask(ctx, s, name, cfg, stored); err != nil {
			if g != nil && st.is(cfg) {
				t.state.Store(st.doubtedSince(wallClock())) // WeChat has named another token
			}
			return err
		}
	} else if stored != nil && stored.AccountID != cfg.ID {
		tok = nil
	}

	var next *state
	if st.is(cfg) {
		if err = storeSame(ctx, s, name, cfg, stored, tok); err == nil {
			next = st.reconfigured(cfg, syncJitter())
		}
	} else {
		t.forget() // the old token is not served from here on
		next, err = k.storeOther(ctx, s, name, st, cfg, stored, tok)
	}
	if err != nil {
		k.reload(ctx, s, t)
		return err
	}
	if g != nil && !next.doubted {
		next = next.succeeded(g, tok, syncJitter())
	}
	next.generation = generation
	t.state.Store(next)
	t.unsure = false
	return nil
}

// storeSame stores an account that stays the same one. Each of its writes
// leaves storage right, so none has to be undone.
func storeSame(ctx context.Context, s logical.Storage, name string, cfg *config, stored, tok *token) error {
	if tok != nil {
		if err := storeToken(ctx, s, name, stored, tok); err != nil {
			return err
		}
	}
	return storeConfig(ctx, s, name, cfg)
}

// storeOther stores an account that is new, or another one than before, whose
// state was st, and returns its state.
func (k *keeper) storeOther(ctx context.Context, s logical.Storage, name string, st *state, cfg *config, stored, tok *token) (*state, error) {
	done, err := k.beginChange(ctx, s, name)
	if err != nil {
		return nil, err
	}
	moved, err := moveRevocation(ctx, s, name, st, cfg)
	if err != nil {
		return nil, err
	}
	if err := storeConfig(ctx, s, name, cfg); err != nil {
		return nil, err
	}
	if tok != nil {
		err = storeToken(ctx, s, name, stored, tok)
	} else if stored != nil {
		err = s.Delete(ctx, storageKey(tokenPrefix, name))
	}
	if err != nil {
		return nil, err
	}
	// Since the token was asked for, another account with its appid may have
	// noticed that it is dead.
	h, err := readHistory(ctx, s, cfg.AppID)
	if err != nil {
		return nil, err
	}
	if old := k.pendRevocation(name, moved); old != nil {
		k.dropRevocation(ctx, s, old)
	}
	done()
	return newState(cfg, tok, h.Epoch, syncJitter()), nil
}

// remove deletes an account, its configuration first: without that nothing else
// counts, and what is left of it is removed by the write-ahead log.
func (k *keeper) remove(ctx context.Context, s logical.Storage, name string) error {
	t, err := k.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer k.release(t)
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := k.removeStored(ctx, s, name); err != nil {
		k.reload(ctx, s, t)
		return err
	}
	t.state.Store(nil)
	t.unsure = false
	if r := k.pendingRevocation(name); r != nil {
		k.dropRevocation(ctx, s, r)
	}
	return nil
}

func (k *keeper) removeStored(ctx context.Context, s logical.Storage, name string) error {
	cfg, err := s.Get(ctx, storageKey(configPrefix, name))
	if err != nil {
		return err
	}
	tok, err := s.Get(ctx, storageKey(tokenPrefix, name))
	if err != nil {
		return err
	}
	if cfg == nil && tok == nil {
		return nil
	}
	done, err := k.beginChange(ctx, s, name)
	if err != nil {
		return err
	}
	if err := s.Delete(ctx, storageKey(configPrefix, name)); err != nil {
		return err
	}
	if err := s.Delete(ctx, storageKey(tokenPrefix, name)); err != nil {
		return err
	}
	done()
	return nil
}

// reconcile removes what an unfinished change left in storage: a token without
// its configuration, or of an account that this name no longer stands for. It
// looks only at what is there, so it may run at any time and any number of
// times. It does not wait for whoever is busy with the account.
func (k *keeper) reconcile(ctx context.Context, s logical.Storage, name string) error {
	t := k.tryAcquire(name)
	if t == nil {
		return errPending
	}
	defer k.release(t)
	tok, err := readToken(ctx, s, name)
	if err != nil || tok == nil {
		return err
	}
	cfg, err := loadConfig(ctx, s, name)
	if err != nil || cfg != nil && cfg.ID == tok.AccountID {
		return err
	}
	k.log.Info("removing the token that an unfinished change left behind", "account", name)
	return s.Delete(ctx, storageKey(tokenPrefix, name))
}
