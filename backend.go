// Package wechat is a secrets engine for HashiCorp Vault: an operator writes an account's
// AppID and AppSecret once, applications read its access token.
//
// A reader of token/:name gets a token that the issuer accepts. Four rules keep it from
// ever being a dead one:
//
//   - A token belongs to its appid. All names of an appid whose credentials WeChat has
//     accepted share one holder, with one lock, one state and one record in storage, so no
//     name voids a token that another serves.
//   - The holder replaces the token before it ends, while the issuer accepts the old one
//     and the new one. Readers take the state from memory and wait for no lock.
//   - A forced refresh voids the token at once. The holder first stores a new fence, and
//     hands a token out only if the issuer has named it under the fence of now.
//   - What the issuer answered is in storage before a reader sees it, so a crash at any
//     moment leaves a record that is true or in doubt, and what is in doubt is asked for. An
//     answer that storage does not take is served from memory: a crash then costs one call.
//
// docs/design.md has the reasons. The files, from the read inwards; each uses only those
// after it:
//
//	backend.go, replication.go, paths.go, path_*.go  Vault's side: parse, ask, shape
//	logins.go               logins and clearings of quotas, apart from tokens
//	background.go, upgrade.go  start, load, tick, sweep, stop; what earlier builds left
//	rotate.go, change.go    a forced refresh is asked for; a configuration is written or deleted
//	read.go                 reads and reports, by name
//	keeper.go               names, their doors, and the holders behind them
//	maintain.go, forced.go  what is due for a holder; forced refreshes, and leak responses made of them
//	account.go              a name's view of its credentials: looked at, fetched, reported
//	fetch.go                a normal call, and what its answer changes
//	stored.go               the holder's record: loaded, written, left by names, removed
//	holder.go               one credential: its lock, its state, its accounts, its next wake-up
//	guard.go, older.go      the note of a forced call that a late write must not undo; earlier builds' entries
//	leak.go, record.go      the budget of forced calls and the pace of a leak response; the record and its state
//	platforms.go, weixin.go, platform.go  the table of platforms; WeChat; what a platform and an issuer are
//	config.go, storage.go   an account as stored; keys, names, versioned entries
//	events.go, metrics.go   what the host is told of; what is counted
//	client.go, answer.go    WeChat's calls and answers, over internal/upstream
//	failure.go, errcode.go  an attempt that failed, and its backoff; what WeChat's codes mean
//	random.go, clock.go, limits.go  all randomness; the clocks; what WeChat documents in numbers
package wechat

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// Version is the plugin's version, a semantic version with a leading v. The
// build sets it.
var Version = "v0.2.0-dev"

const operationPrefix = "wechat"

// backend is one mount of the engine.
type backend struct {
	*framework.Backend
	keeper *keeper
	logins *logins
}

// Factory makes a mount. Vault also calls it at registration, without storage,
// so it only wires.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	return newBackend(ctx, conf, &client{})
}

func newBackend(ctx context.Context, conf *logical.BackendConfig, c *client) (*backend, error) {
	b := &backend{}
	b.Backend = &framework.Backend{
		Help:           strings.TrimSpace(backendHelp),
		BackendType:    logical.TypeLogical,
		RunningVersion: Version,
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{configPrefix, heldPrefix},
			LocalStorage:    []string{framework.WALPrefix},
		},
		// The framework looks for the first pattern that matches: the hot path
		// comes first.
		Paths: framework.PathAppend(
			b.tokenPaths(),
			b.signPaths(),
			b.code2SessionPaths(),
			b.oauth2Paths(),
			b.ticketPaths(),
			b.refreshPaths(),
			b.statusPaths(),
			b.rotatePaths(),
			b.clearQuotaPaths(),
			b.configPaths(),
			b.metricsPaths(),
		),
		InitializeFunc:    b.initialize,
		PeriodicFunc:      b.tick,
		WALRollback:       b.rollback,
		WALRollbackMinAge: walMinAge,
		Invalidate:        func(_ context.Context, key string) { b.invalidate(key) },
		Clean:             func(context.Context) { b.keeper.stop() },
	}
	setup := *conf
	if conf.System != nil { // there is none at registration
		setup.System = &cachedSystemView{SystemView: conf.System}
	}
	if err := b.Setup(ctx, &setup); err != nil {
		return nil, err
	}
	// All mounts of a plugin process share one logger.
	log := b.Logger().With("mount", conf.BackendUUID)
	b.keeper = newKeeper(log, c, b.Backend, b.WriteSafeReplicationState)
	b.logins = newLogins(b.keeper.ctx, log, c, b.keeper.metrics)
	return b, nil
}

// initialize starts the background where this node may write. Vault waits for
// it while it unseals, so it returns at once, and it never fails.
func (b *backend) initialize(_ context.Context, req *logical.InitializationRequest) error {
	if b.WriteSafeReplicationState() {
		b.keeper.start(b.keeper.metrics.watched(req.Storage))
	}
	return nil
}

// invalidate forgets what another node changed in storage.
func (b *backend) invalidate(key string) {
	b.keeper.invalidate(key)
	if name, ok := strings.CutPrefix(key, configPrefix); ok {
		b.logins.forget(storedName(name))
	}
}

// walMinAge is the age at which Vault hands an entry of the write-ahead log to
// rollback. It only spares work: rollback leaves a holder alone whose lock is held.
const walMinAge = 10 * time.Second

// rollback finishes what an entry of the write-ahead log announced. Vault calls it for
// entries older than walMinAge, and drops the entry if it returns nil. It does not wait
// for the lock of an account.
func (b *backend) rollback(ctx context.Context, req *logical.Request, kind string, data any) error {
	if !b.keeper.writable() {
		return errPending // it is the active node's to do
	}
	storage := b.keeper.metrics.watched(req.Storage)
	switch kind {
	case walChange:
		return rollBack(data, func(c *change) error { return b.keeper.reconcile(ctx, storage, c) })
	case walGuard:
		return rollBack(data, func(g *guard) error { return b.keeper.settle(ctx, storage, g) })
	case walRevocation:
		return rollBack(data, func(l *olderLeak) error { return b.keeper.adoptLeak(ctx, storage, l) })
	case walForced:
		return nil // what it guarded is read no more
	}
	return fmt.Errorf("the write-ahead log holds an entry of the unknown kind %q: was it written by a newer version of the plugin?", kind)
}

// rollBack hands the data of an entry to what finishes it.
func rollBack[T any](data any, finish func(*T) error) error {
	var entry T
	if err := decodeWAL(data, &entry); err != nil {
		return err
	}
	return finish(&entry)
}

// tick is called by Vault once a minute, with locks held that stall seal and
// reload: it only nudges the background.
func (b *backend) tick(context.Context, *logical.Request) error {
	b.keeper.tick()
	return nil
}

// HandleExistenceCheck looks only at the path. The framework would validate the
// fields here, and an error at this point reaches Vault's log and the audit
// log with the value of the field.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (bool, bool, error) {
	if b.withoutName(req) != nil {
		return false, false, nil // the write itself is answered
	}
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// HandleRequest answers reads of a token and of a signature itself: nearly every
// request is one, and the framework would spend more on finding out than the engine
// on the answer. From other requests it refuses fields of the wrong type, and writes
// with fields that there are not, before the framework does: its messages would hold
// their values, its warnings their names.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if name, ok := strings.CutPrefix(req.Path, tokenPrefix); ok && name != "" && req.Operation == logical.ReadOperation && len(req.Data) == 0 {
		return b.readToken(ctx, req, name)
	}
	if name, page, ok := signedRead(req); ok {
		return b.sign(ctx, req, name, page)
	}
	if resp := b.withoutName(req); resp != nil {
		return resp, nil
	}
	if len(req.Data) > 0 {
		if path := b.Route(req.Path); path != nil {
			if err := checkData(req, path); err != nil {
				return logical.ErrorResponse(err.Error()), nil
			}
		}
	}
	watched := *req
	watched.Storage = b.keeper.metrics.watched(req.Storage)
	return b.Backend.HandleRequest(ctx, &watched)
}

// checkData reports what is wrong with the data of a request besides its values.
func checkData(req *logical.Request, path *framework.Path) error {
	if err := checkTypes(path.Fields, req.Data); err != nil {
		return err
	}
	area, _, _ := strings.Cut(req.Path, "/")
	area += "/"
	write := req.Operation == logical.CreateOperation || req.Operation == logical.UpdateOperation
	if path.Operations[req.Operation] == nil || !write && area != signPrefix {
		return nil
	}
	err := checkFields(area, path.Fields, req.Data)
	if err != nil && area == signPrefix {
		// An address whose & was not escaped arrives cut off, and its signature would be
		// good for nothing, which only the user's browser says.
		return fmt.Errorf("%w: percent-encode its value, & as %%26", err)
	}
	return err
}

const backendHelp = `
The wechat secrets engine keeps the stable access tokens of WeChat accounts
(service accounts, mini programs, mini games and Channels accounts).

An operator writes an account's AppID and AppSecret once, to config/<name>.
Applications read token/<name> and always get the account's current token: the
engine asks WeChat for it, keeps it, and replaces it before it runs out. The
AppSecret stays in Vault, and no two services fight for the token.

Nothing else needs it either: code2session/<name> and oauth2/<name> exchange a user's
code for the openid, sign/<name> signs a page for JS-SDK, clear-quota/<name> sets
WeChat's call counters back to zero.

If the account has an IP whitelist, it has to hold the address from which Vault's
active node reaches WeChat: errcode 40164 names it.
`
