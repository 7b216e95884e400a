package wechat

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// appid is what the names of one AppID at one upstream (base_url and ca_pem) share:
// one token at WeChat, and so the history of its forced refreshes, and the doubt
// that each of them leaves until WeChat has been asked.
//
// A forced call gives the appid a new epoch before it is made, and a replacement by
// somebody outside gives it one when it is noticed. A token names the epoch in which
// WeChat confirmed it last, and one of another epoch is not handed out. That is the
// whole rule: nobody has to tell the other names, and whoever waited for something
// finds out by looking at the epoch again.
//
// Only an account whose credentials WeChat has accepted may change what is shared:
// an AppID is public, and whoever writes it down without its secret must not be able
// to disturb the accounts that have it. Its callers see to that: what takes an
// *tokenAnswer has one, and force asks for a normal answer first.
type appid struct {
	key    string // of its history in storage
	guards *guards

	// epoch is what a token must name to be handed out. It is written under mu, and
	// read without.
	epoch atomic.Int64

	// since is when the epoch became what it is, in nanoseconds of Unix time, by
	// which tokens of other epochs are due. It is written under mu.
	since atomic.Int64

	// stale counts the changes that other nodes made to the history in storage.
	stale atomic.Uint64

	// leak is that of history, to be read without mu. It is written under mu.
	leak atomic.Pointer[leak]

	// storing is held while the history is read from storage or written there, which
	// may take long: whoever waits for it may give up. It is taken before mu.
	storing *semaphore.Weighted

	mu       sync.Mutex // guards what follows; held for moments, never across storage or a call
	loaded   bool       // the history was read from storage since it was stale
	history  history
	unstored bool          // the history in memory is newer than the stored one
	spaced   time.Time     // before this no forced call is made, by the clock that nobody can set
	forcing  chan struct{} // closed when the forced call that is in the air has ended; nil while none is
	forced   *force        // the last forced call that is not undone; nil if none was made since the start
	latest   latest        // the token that WeChat named last in this epoch
	answers  uint64        // grows with each change of epoch or latest
	era      int64         // of the clock when times that lay ahead were last corrected
	members  []member      // the accounts in memory, nearly always one
	revoked  string        // the account that has completed a leak response, until that is told
}

// member is an account that has the appid.
type member struct {
	name string
	wake func() // has the background look at it
}

// history is what storage knows of the forced refreshes of one appid, under
// whichever names it is or was configured.
type history struct {
	// Version is that of the storage schema.
	Version int

	// Epoch is that of the appid: a random number that no two forced calls have in
	// common, whatever is undone, lost or written late. It is 0 before the first.
	Epoch int64

	// Forced holds the calls of the last 24 hours that took effect or may have, in
	// the order in which they were begun.
	Forced []forcedCall

	// Leak is the leak response that is not complete, nil if there is none.
	Leak *leak

	// Revoked is when the last one was complete, zero if none was.
	Revoked time.Time
}

// forcedCall is one forced refresh.
type forcedCall struct {
	At    time.Time // when it reached WeChat at the latest
	Epoch int64     // the one it began
}

// storedHistory is a history in storage.
type storedHistory struct {
	Version int         `json:"version"`
	Epoch   int64       `json:"epoch"`
	Forced  []time.Time `json:"forced"`
	Epochs  []int64     `json:"epochs"` // of the calls in Forced
	Leak    *leak       `json:"leak,omitempty"`
	Revoked time.Time   `json:"revoked,omitzero"`
}

// MarshalJSON makes what is stored.
func (h history) MarshalJSON() ([]byte, error) {
	stored := storedHistory{Version: h.Version, Epoch: h.Epoch, Leak: h.Leak, Revoked: h.Revoked}
	for _, f := range h.Forced {
		stored.Forced, stored.Epochs = append(stored.Forced, f.At), append(stored.Epochs, f.Epoch)
	}
	return json.Marshal(stored)
}

// UnmarshalJSON reads what is stored. A history whose calls have no epochs was stored
// before the first release: it is read as the zero history.
func (h *history) UnmarshalJSON(raw []byte) error {
	var stored storedHistory
	if err := json.Unmarshal(raw, &stored); err != nil {
		return err
	}
	*h = history{}
	if len(stored.Epochs) != len(stored.Forced) {
		return nil
	}
	h.Version, h.Epoch, h.Leak, h.Revoked = stored.Version, stored.Epoch, stored.Leak, stored.Revoked
	for i, at := range stored.Forced {
		h.Forced = append(h.Forced, forcedCall{At: at, Epoch: stored.Epochs[i]})
	}
	return nil
}

// historyKey is where the history of an appid at an upstream is stored. At WeChat
// itself it is named by the appid alone.
func historyKey(cfg *config) string {
	name := url.PathEscape(cfg.AppID)
	if cfg.BaseURL != defaultBaseURL || cfg.CAPEM != "" {
		sum := sha256.Sum256([]byte(cfg.BaseURL + "\x00" + cfg.CAPEM))
		name += "/" + hex.EncodeToString(sum[:16])
	}
	return storageKey(rotationPrefix, name)
}

// trimmed returns the history as it is stored: with the latest calls that WeChat's limits
// are about, whatever the clock says of their age. A clock that is wrong for a while must
// not have them forgotten.
func (h history) trimmed() history {
	h.Version = schemaVersion
	h.Forced = slices.Clone(h.Forced[max(0, len(h.Forced)-forcedPerDay):])
	return h
}

// pruned returns the history without what is older than a day.
func (h history) pruned(now time.Time) history {
	h.Version = schemaVersion
	h.Forced = slices.DeleteFunc(slices.Clone(h.Forced), func(f forcedCall) bool {
		return now.Sub(f.At).Abs() >= day // a day ahead is of a clock that was wrong altogether
	})
	return h
}

// remaining returns how many forced calls may still be made today.
func (h history) remaining() int { return max(0, forcedPerDay-len(h.Forced)) }

// wait returns how long no forced call may be made.
func (h history) wait(now time.Time) time.Duration {
	n := len(h.Forced)
	if n == 0 {
		return 0
	}
	wait := h.spacing(now)
	if n >= forcedPerDay {
		byTime := slices.SortedFunc(slices.Values(h.Forced), func(a, b forcedCall) int { return a.At.Compare(b.At) })
		wait = max(wait, byTime[n-forcedPerDay].At.Add(day).Sub(now))
	}
	return max(0, wait)
}

// spacing is what of wait the last forced call alone calls for.
func (h history) spacing(now time.Time) time.Duration {
	n := len(h.Forced)
	// One further ahead is of a clock that was set back since: the day's budget
	// counts it, but it is no reason to wait.
	if n == 0 || h.Forced[n-1].At.Sub(now) > storageTimeout+maxRequestTimeout+time.Minute {
		return 0
	}
	return max(0, h.Forced[n-1].At.Add(forcedSpacing).Sub(now))
}

// secondsUp is a wait in whole seconds, rounded up: one that comes then is not refused again.
func secondsUp(wait time.Duration) int64 { return int64(math.Ceil(wait.Seconds())) }

// limited is the problem of a forced call that would come too soon.
func (h history) limited(wait time.Duration) *problem {
	meaning := fmt.Sprintf("WeChat wants %d seconds between two forced refreshes of an appid", forcedSpacing/time.Second)
	if h.remaining() == 0 {
		meaning = fmt.Sprintf("WeChat allows %d forced refreshes of an appid in 24 hours", forcedPerDay)
	}
	return &problem{
		Rule: rule{
			Class: upstream.ClassQuota, Status: http.StatusTooManyRequests, Backoff: backoff{First: wait, Most: wait},
			Meaning: meaning, Advice: fmt.Sprintf("try again in %d seconds", secondsUp(wait)),
		},
		Local: true, HadNoEffect: true,
	}
}

func newAppid(key string, g *guards) *appid {
	return &appid{key: key, guards: g, storing: semaphore.NewWeighted(1)}
}

// appids are the appids of a mount that have an account in memory.
type appids struct {
	guards *guards
	mu     sync.Mutex // taken before appid.mu
	all    map[string]*appid
}

// join returns the appid of a configuration, of which the account of this name is a
// member from now on. leave has to follow.
func (all *appids) join(cfg *config, name string, wake func()) *appid {
	return all.enter(historyKey(cfg), name, wake)
}

// enter is join by the key.
func (all *appids) enter(key, name string, wake func()) *appid {
	all.mu.Lock()
	defer all.mu.Unlock()
	ap := all.all[key]
	if ap == nil {
		ap = newAppid(key, all.guards)
		if all.all == nil {
			all.all = make(map[string]*appid)
		}
		all.all[key] = ap
	}
	ap.mu.Lock()
	defer ap.mu.Unlock()
	ap.remove(name)
	ap.members = append(ap.members, member{name, wake})
	return ap
}

// leave ends the membership of an account. The last to leave takes the appid out of
// memory.
func (all *appids) leave(ap *appid, name string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if ap.remove(name); len(ap.members) == 0 {
		delete(all.all, ap.key)
	}
}

// remove takes a member out. The caller holds ap.mu.
func (ap *appid) remove(name string) {
	ap.members = slices.DeleteFunc(ap.members, func(m member) bool { return m.name == name })
}

// find returns the appid whose history is stored at key, nil if no account in memory
// has it.
func (all *appids) find(key string) *appid {
	all.mu.Lock()
	defer all.mu.Unlock()
	return all.all[key]
}

// sweep removes from storage what the history at key holds of use to an account, if no
// account in memory has its appid: a leak response, and the whole of it if none of its
// calls is younger than a day.
func (all *appids) sweep(ctx context.Context, s logical.Storage, key string) error {
	if all.find(key) != nil {
		return nil
	}
	ap := all.enter(key, sweeper, func() {})
	defer all.leave(ap, sweeper)
	// Whoever joins meanwhile waits for this lock, and then finds what is left.
	if err := ap.storing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer ap.storing.Release(1)
	if len(ap.others(sweeper)) > 0 {
		return nil
	}
	var h history
	found, err := readEntry(ctx, s, key, &h)
	switch counts := len(h.pruned(wallClock()).Forced) > 0; {
	case err != nil || !found || counts && h.Leak == nil:
		return err
	case counts:
		h.Leak = nil
		return writeEntry(ctx, s, key, &h)
	}
	return s.Delete(ctx, key)
}

// renew replaces a history that this version of the plugin cannot read, if name is the
// only account in memory that has its appid. How many forced calls were made is then
// not known, which WeChat counts, too; and every token is in doubt.
func (ap *appid) renew(ctx context.Context, s logical.Storage, name string) error {
	if err := ap.storing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer ap.storing.Release(1)
	var h history
	_, err := readEntry(ctx, s, ap.key, &h)
	switch {
	case !errors.Is(err, errUnreadable):
		return err
	case len(ap.others(name)) > 0:
		return nil // it is for the last of them to do
	}
	h = history{Epoch: newEpoch()}.trimmed()
	return writeEntry(ctx, s, ap.key, &h)
}

// sweeper is a member that no account can be: names are not empty.
const sweeper = ""

// others returns the names of the other members, sorted.
func (ap *appid) others(name string) []string {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	var others []string
	for _, m := range ap.members {
		if m.name != name && m.name != sweeper {
			others = append(others, m.name)
		}
	}
	slices.Sort(others)
	return others
}

// names returns the names of all members, sorted.
func (ap *appid) names() []string { return ap.others(sweeper) }

// wakeAll has the background look at every member. The caller holds ap.mu.
func (ap *appid) wakeAll() {
	for _, m := range ap.members {
		m.wake()
	}
}

// load reads the history from storage, unless it is in memory.
func (ap *appid) load(ctx context.Context, s logical.Storage) error {
	if err := ap.storing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer ap.storing.Release(1)
	ap.mu.Lock()
	done := ap.loaded
	ap.mu.Unlock()
	if done {
		return nil
	}
	var h history
	found, err := readEntry(ctx, s, ap.key, &h)
	if err != nil {
		return err
	}
	recorded, err := ap.guards.of(ctx, s, ap.key)
	if err != nil {
		return err
	}
	ap.mu.Lock()
	defer ap.mu.Unlock()
	ap.loaded = true
	if ap.unstored {
		return nil // what was noticed here since counts for more
	}
	if found && h.Version == 0 {
		// The calls that it held may have killed any token: WeChat is asked.
		h.Epoch, ap.unstored = newEpoch(), true
	}
	now := wallClock()
	if h.restore(recorded, now) {
		ap.unstored = true
	}
	if h.Leak != nil {
		h.Leak = h.Leak.checked(now)
	}
	ap.history = h
	ap.leak.Store(h.Leak)
	if ap.epoch.Load() != h.Epoch {
		ap.begin(h.Epoch)
	}
	return nil
}

// restore puts back what was recorded and the history does not hold. Which token WeChat
// knows is then to be asked.
func (h *history) restore(recorded []guard, now time.Time) (changed bool) {
	for _, g := range recorded {
		if now.Sub(g.At) < day && !slices.ContainsFunc(h.Forced, func(f forcedCall) bool { return f.Epoch == g.Epoch }) {
			h.Forced = append(h.Forced, forcedCall{At: g.At, Epoch: g.Epoch})
			h.Epoch, changed = newEpoch(), true
			if h.Leak == nil {
				h.Leak = g.Leak
			}
		}
	}
	if changed { // the record may be older than calls that the history holds: one that was written late
		slices.SortStableFunc(h.Forced, func(a, b forcedCall) int { return a.At.Compare(b.At) })
	}
	return changed
}

// invalidate has the history read again that another node has changed.
func (ap *appid) invalidate() {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	ap.loaded = false
	ap.stale.Add(1)
	ap.wakeAll()
}

// begin makes epoch that of the appid, of whose token nothing is known yet. The
// caller holds ap.mu.
func (ap *appid) begin(epoch int64) {
	ap.history.Epoch = epoch
	ap.epoch.Store(epoch)
	ap.since.Store(wallClock().UnixNano())
	ap.latest = latest{}
	ap.answers++
}

// changedAt returns when the epoch became what it is: tokens of other epochs are due
// since then.
func (ap *appid) changedAt() time.Time { return time.Unix(0, ap.since.Load()) }

// clockSetBack keeps what is remembered from lying ahead of a clock that was set back to
// now. How long the latest token lives is then not known: that WeChat names another one
// shows no replacement by anyone.
func (ap *appid) clockSetBack(now time.Time) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if present := era(); ap.era != present {
		ap.era = present
		ap.since.Store(min(ap.since.Load(), now.UnixNano()))
		ap.latest = latest{}
		if l := ap.leak.Load(); l != nil {
			ap.setLeak(l.checked(now))
		}
	}
}

// save writes the history to storage if the stored one is older.
func (ap *appid) save(ctx context.Context, s logical.Storage) error {
	if err := ap.storing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer ap.storing.Release(1)
	ap.mu.Lock()
	h, changes, unstored := ap.history.trimmed(), ap.answers, ap.unstored
	ap.mu.Unlock()
	if !unstored {
		return nil
	}
	if err := writeEntry(ctx, s, ap.key, &h); err != nil {
		return err
	}
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if ap.answers == changes {
		ap.unstored = false
	}
	return nil
}

// rewrite has the next save write the history, if there is one, also if storage should
// have it: an instance of the mount that was closed before may have written late.
func (ap *appid) rewrite() {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if len(ap.history.Forced) > 0 {
		ap.unstored = true
	}
}

// known reports whether the history is in memory.
func (ap *appid) known() bool {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	return ap.loaded
}

// budget returns how many forced calls may still be made today.
func (ap *appid) budget() int {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	return ap.history.pruned(wallClock()).remaining()
}

// lately is what is known of a forced call that forbids another one so soon after it.
type lately struct {
	by       string    // the account that made it, "" if that was before the engine's start
	at       time.Time // when it was begun, or reached WeChat at the latest
	known    bool      // what came of it is
	replaced bool      // it replaced the token
}

// lately returns what is known of the last forced call, nil if it was not made lately.
func (ap *appid) lately() *lately {
	now := wallClock()
	ap.mu.Lock()
	defer ap.mu.Unlock()
	f := ap.forced
	switch h := ap.history; {
	case f != nil && (ap.forcing != nil || time.Now().Before(ap.spaced)):
		named := ap.latest.token
		known := named != "" && f.by.token != ""
		return &lately{by: f.by.name, at: f.begun, known: known, replaced: known && named != f.by.token}
	case h.spacing(now) > 0:
		at := h.Forced[len(h.Forced)-1].At
		if at.After(now) {
			at = now
		}
		return &lately{at: at}
	}
	return nil
}

// view is what was known of an appid when a normal call was made.
type view struct {
	epoch   int64
	answers uint64
}

// forcedBy returns the account whose forced call is in the air, and that call's end;
// nil if there is none.
func (ap *appid) forcedBy() (name string, over <-chan struct{}) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if ap.forced == nil {
		return "", nil
	}
	return ap.forced.by.name, ap.forcing
}

// look returns what is known before a normal call. While a forced call is in the air,
// none is to be made, as what it brings may be dead on arrival: then forcing is not nil,
// and closed when the forced call has ended.
func (ap *appid) look() (v view, forcing <-chan struct{}) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	return view{ap.epoch.Load(), ap.answers}, ap.forcing
}

// learn takes in what a normal call brought that was made when v was known, and
// returns the epoch by which that token is good, and whether it shows a replacement by
// somebody outside. It is not ok if the answer may be older than what was learned
// meanwhile: then WeChat has to be asked again.
func (ap *appid) learn(v view, g *tokenAnswer) (epoch int64, outside, ok bool) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	epoch = ap.epoch.Load()
	known := ap.latest
	switch {
	case ap.forcing != nil:
		return 0, false, false
	case known.token == g.token:
		ap.named(latest{g.token, known.rotatedAt, g.end()}, false)
		return epoch, false, true
	case ap.answers != v.answers:
		return 0, false, false
	case known.token != "" && known.end.Sub(g.asked) > overlap:
		// WeChat itself replaces a token only near its end: somebody outside has
		// forced, and the other names hold a dead token.
		epoch, outside = newEpoch(), true
		ap.begin(epoch)
		ap.unstored = true
		defer ap.wakeAll()
	}
	ap.named(latest{g.token, g.asked, g.end()}, false)
	ap.answers++
	return epoch, outside, true
}

// recall takes in a token that was read from storage: it is one that WeChat named.
func (ap *appid) recall(t *token) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if t.RevokedAt.After(ap.history.Revoked) {
		ap.history.Revoked, ap.unstored = t.RevokedAt, true
	}
	if t.Epoch != ap.epoch.Load() {
		return
	}
	older, newer := ap.latest, latest{token: t.AccessToken, rotatedAt: t.RotatedAt, end: t.end()}
	switch {
	case older.token == newer.token:
		return
	case newer.rotatedAt.Before(older.rotatedAt):
		older, newer = newer, older
	}
	if older.token != "" && older.end.Sub(newer.rotatedAt) > overlap {
		// One of the two was replaced from outside, and storage did not take the
		// note of it: WeChat is to be asked about both.
		ap.begin(newEpoch())
		ap.unstored = true
		ap.wakeAll()
		return
	}
	// A token of the same epoch that WeChat has replaced since ends well before. One that
	// replaced another in its first second may seem to end a second earlier.
	if l := ap.leak.Load(); l == nil || newer.end.Add(clockTolerance).After(l.End) {
		ap.named(newer, false)
	}
	ap.latest = newer
	ap.answers++
}

// force is a forced call, that is in the air or was.
type force struct {
	call     forcedCall
	by       forcer
	begun    time.Time
	prior    *force    // the one before it, as long as this one may be undone
	previous int64     // the epoch before it
	before   latest    // the token before it
	since    time.Time // of the epoch before it
	leak     *leak     // the leak response before it
	over     chan struct{}
	guard    string // the ID of its record in the write-ahead log, "" if it has none
}

// forcer is an account that makes a forced call.
type forcer struct {
	name  string
	token string // that is to be replaced, "" if it has none
	end   time.Time

	// revokes says that a leak of that token is to be answered.
	revokes bool
}

// announce begins a forced call: whatever happens from now on, no token of before is
// handed out unless WeChat confirms it, or certainly did nothing. That is in storage
// when announce returns, and only then may the call be made. end has to follow.
//
// The same Put stores what the call is for: a leak response that begins with it, or the
// count of the calls of one that is pending.
//
// The error is a *problem if a limit forbids the call.
func (ap *appid) announce(ctx context.Context, s logical.Storage, by forcer, timeout time.Duration) (*force, error) {
	if err := ap.storing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer ap.storing.Release(1)
	begun := wallClock()
	ap.mu.Lock()
	h, counted := ap.history, ap.history.pruned(begun)
	forcing, spaced := ap.forcing, ap.spaced
	ap.mu.Unlock()
	if wait := max(counted.wait(begun), time.Until(spaced)); wait > 0 || forcing != nil {
		return nil, counted.limited(max(wait, time.Second))
	}
	// WeChat counts from when the call reaches it. Storage may take its time before
	// the call is made, so the stored time is the latest at which that can be.
	call := forcedCall{At: begun.Add(storageTimeout + timeout), Epoch: newEpoch()}
	h.Epoch = call.Epoch
	h.Forced = append(slices.Clone(h.Forced), call)
	if by.revokes {
		h.Leak = newLeak(by.name, by.token, by.end)
	}
	if h.Leak != nil {
		h.Leak = h.Leak.called(call.At)
	}
	h = h.trimmed()
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	var record string
	if ap.guards.needed() {
		var err error
		if record, err = (&guard{ap.key, call.At, call.Epoch, h.Leak}).store(ctx, s); err != nil {
			return nil, err
		}
	}
	err := writeEntry(ctx, s, ap.key, &h)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		withdrawGuard(context.WithoutCancel(ctx), s, record)
	}
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if err != nil {
		// The history may have been written all the same: it is to be written again
		// as it was.
		ap.unstored = true
		return nil, err
	}
	f := &force{
		call: call, previous: ap.epoch.Load(), before: ap.latest, since: ap.changedAt(),
		over: make(chan struct{}), guard: record, by: by, begun: begun, prior: ap.forced,
		leak: ap.leak.Load(),
	}
	ap.history = h
	ap.leak.Store(h.Leak)
	ap.begin(call.Epoch)
	ap.forcing, ap.forced = f.over, f
	return f, nil
}

// end ends a forced call that reached WeChat at the given time at the latest. g is
// its answer, nil if what became of it is not known.
func (ap *appid) end(f *force, reached time.Time, g *tokenAnswer) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	for i := range ap.history.Forced {
		if ap.history.Forced[i].Epoch == f.call.Epoch {
			ap.history.Forced[i].At = reached
		}
	}
	// Further ahead than a request may take is a clock that was set back meanwhile.
	late := min(max(0, reached.Sub(wallClock())), maxRequestTimeout)
	ap.spaced = time.Now().Add(forcedSpacing + late)
	f.prior = nil
	if l := ap.leak.Load(); l != nil {
		ended := *l
		ended.Next = reached.Add(l.Next.Sub(f.call.At))
		ap.setLeak(&ended)
	}
	if g != nil {
		ap.named(latest{g.token, g.asked, g.end()}, true)
	}
	ap.close()
}

// undo ends a forced call that certainly did nothing: what held before holds again.
func (ap *appid) undo(f *force) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	ap.begin(f.previous)
	ap.since.Store(f.since.UnixNano())
	ap.latest = f.before
	ap.setLeak(f.leak)
	ap.history.Forced = slices.DeleteFunc(ap.history.Forced, func(c forcedCall) bool { return c.Epoch == f.call.Epoch })
	ap.forced = f.prior
	ap.close()
}

// close lets those go on who wait for the forced call to end, and the background with
// every member. The caller holds ap.mu.
func (ap *appid) close() {
	ap.answers++
	ap.unstored = true
	close(ap.forcing)
	ap.forcing = nil
	ap.wakeAll()
}

// setLeak replaces the leak response. The caller holds ap.mu.
func (ap *appid) setLeak(l *leak) {
	ap.history.Leak = l
	ap.leak.Store(l)
	ap.answers++
	ap.unstored = true
}

// changeLeak changes the leak response, if there is one, and has the background look at
// the account that makes its next call.
func (ap *appid) changeLeak(change func(l *leak)) {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	l := ap.leak.Load()
	if l == nil {
		return
	}
	next := *l
	change(&next)
	ap.setLeak(&next)
	for _, m := range ap.members {
		if m.name == next.Turn {
			m.wake()
		}
	}
}

// endLeak ends the leak response, incomplete.
func (ap *appid) endLeak() {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	ap.setLeak(nil)
}

// named notes the token that WeChat has named, and what that means for a leak response.
// The caller holds ap.mu.
func (ap *appid) named(token latest, forced bool) {
	ap.latest = token
	l := ap.leak.Load()
	if l == nil {
		return
	}
	switch next := l.named(token, forced); {
	case next == l:
	case next.Left > 0:
		ap.setLeak(next)
	default:
		ap.setLeak(nil)
		ap.history.Revoked = wallClock().UTC()
		ap.revoked = l.By
	}
}

// revokedAt returns when the last leak response was complete, zero if none was.
func (ap *appid) revokedAt() time.Time {
	ap.mu.Lock()
	defer ap.mu.Unlock()
	return ap.history.Revoked
}

// answersLeak returns the leak response whose next call the account of this name makes,
// nil if there is none. An account whose credentials WeChat has accepted also takes over
// from one that is gone.
func (ap *appid) answersLeak(name string, accepted bool) *leak {
	l := ap.leak.Load()
	if l == nil || l.Turn == name {
		return l
	}
	ap.mu.Lock()
	defer ap.mu.Unlock()
	if !accepted || slices.ContainsFunc(ap.members, func(m member) bool { return m.name == l.Turn }) {
		return nil
	}
	return l
}
