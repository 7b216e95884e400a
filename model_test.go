package wechat

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// The model test draws operations, faults and their times from a seed, carries them
// out on a mount in fake time, and holds every answer against what it has seen at the
// platform itself. A seed repeats: what it draws is in model_draw_test.go. To repeat a
// failure, and to see it under the race detector:
//
//	go test -run TestRandomSchedules -model.seed 123 .
//
// A seed that has failed is added to testdata/model/seeds, and is run from then on.
var (
	modelSeeds = flag.Int("model.seeds", 200, "how many seeds the model test draws its schedules from")
	modelFirst = flag.Uint64("model.first", 1, "the first of them")
	modelSeed  = flag.Uint64("model.seed", 0, "the one seed that the model test draws its schedule from, instead")
	modelKinds = flag.String("model.kinds", "", "kinds of misfortune, by commas, that every schedule has")
)

func TestRandomSchedules(t *testing.T) {
	if *modelSeed != 0 {
		runSchedule(t, *modelSeed)
		return
	}
	seeds := failedSeeds(t)
	for i := range uint64(*modelSeeds) {
		seeds = append(seeds, *modelFirst+i)
	}
	done, failed := 0, []uint64{}
	for _, seed := range seeds {
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { runSchedule(t, seed) }) {
			failed = append(failed, seed)
			if len(failed) == 5 {
				break
			}
		}
		done++
	}
	t.Logf("%d seeds", done)
	if len(failed) > 0 {
		t.Errorf("seeds %d failed: repeat one with -model.seed, and add it to %s", failed, failedSeedsFile)
	}
}

// runSchedule carries out the schedule of a seed, and returns its trace.
func runSchedule(t *testing.T, seed uint64) (trace []string) {
	t.Helper()
	defer clockAhead.Store(0)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	cryptotest.SetGlobalRandom(t, seed)
	synctest.Test(t, func(t *testing.T) {
		x := newModel(t, seed, &clockAhead)
		server, pipe := &http.Server{Handler: x, ReadHeaderTimeout: time.Minute}, x.m.pipe
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(pipe) })
		x.opened = time.Now()
		x.open()
		x.act()
		x.recover()
		x.remove()
		x.m.close()
		for _, b := range x.closed {
			b.keeper.busy.Wait()
		}
		x.strays.Wait()
		x.checkCalls()
		_ = server.Close()
		serving.Wait()
		trace = x.lines()
		if len(x.broken) > 0 {
			t.Errorf("seed %d:\n%s\n\n%s", seed, strings.Join(x.broken, "\n"), strings.Join(trace, "\n"))
		}
	})
	return trace
}

// The accounts of the model: their names, the appids and base_urls that they move
// between. Accounts with the same of both share a token by the engine's rules; at the
// platform the appid alone decides.
var (
	modelNames  = []string{"a", "b", "team/c"}
	modelAppIDs = []string{testAppID, otherAppID}
	modelURLs   = []string{"http://127.0.0.1:80", "http://127.0.0.2:80"}
)

// model is one schedule with all that was seen of it.
type model struct {
	t       *testing.T
	seed    uint64
	m       *mount
	offset  *atomic.Int64       // of the machine's clock
	shared  *semaphore.Weighted // each request holds one of it; who opens the mount again holds all, as Vault does
	closed  []*backend          // the instances before
	process *process
	kinds   map[string]bool // of misfortune that there are
	calm    atomic.Bool     // no fault begins any more

	strays sync.WaitGroup // writes that were left behind

	mu          sync.Mutex // guards what follows
	drawn       map[string]int
	trace       []traced
	broken      []string // what was violated
	instance    int
	opened      time.Time            // the instance there is
	calls       []*modelCall         // in the order of their arrival
	outside     []outsideForce       // replacements by others
	ends        map[string]time.Time // of each token, at the latest
	jumps       []time.Time          // of the clock
	blips       []blip               // of the clock
	overwritten []time.Time          // when a closed instance's history reached storage
	back        time.Time            // when it was set back last
	trouble     time.Time            // when storage was out of order last
	ill         bool                 // it is
	lied        bool                 // the platform took forced calls for normal ones
	accounts    map[string]*modelAccount
	forces      map[string]*modelForces // by appid
}

// modelForces is what was asked for of one appid: a leak response of one name may be
// carried out with the credentials of another.
type modelForces struct {
	calls       int // at most
	revocations int
}

// maxRequests is more than ever are under way.
const maxRequests = 64

// modelAccount is what the model believes of a name, and has seen of it.
type modelAccount struct {
	name      string
	version   int       // grows with each write that begins or ends
	writing   int       // writes under way
	writtenAt time.Time // when the last of them ended
	sure      bool      // what follows is what storage holds

	exists  bool
	appid   string
	baseURL string
	maxTTL  map[int64]bool // those that may hold; 0 is none
	secret  bool           // the secret is the right one
	secrets int            // how many were written

	held        string    // the token that was read last
	heldAt      time.Time // when
	disturbed   int       // grows with whatever may take a token away
	disowned    map[string]bool
	rotatedAt   map[string]string // of each token, as it was shown
	overwritten bool              // by a closed instance, in storage

	revoking    bool      // a revocation is pending
	revokedFrom time.Time // when WeChat named the token that leaked, at the latest
	revokedAt   time.Time // when that was asked for
}

func (n *modelAccount) group() string { return n.appid + "@" + n.baseURL }

// modelCall is a call of the platform.
type modelCall struct {
	name, appid, group string
	forced             bool
	good               bool // the secret was the right one
	instance           int
	sent               time.Time
	reached            time.Time // when the platform did its work
	over               time.Time // for the engine; zero while it is under way
	late               bool      // it was held on its way
	outcome            callOutcome
	token              string
}

// callOutcome is what the engine can know of a call.
type callOutcome int

const (
	callUnknown callOutcome = iota
	callAnswered
	callRefused // certainly without effect
)

type outsideForce struct {
	appid string
	at    time.Time
}

func newModel(t *testing.T, seed uint64, offset *atomic.Int64) *model {
	x := &model{
		t: t, seed: seed, offset: offset, kinds: map[string]bool{}, shared: semaphore.NewWeighted(maxRequests),
		drawn: map[string]int{}, ends: map[string]time.Time{}, accounts: map[string]*modelAccount{},
		m: &mount{
			t: t, storage: newFaultyStorage(), sim: wechatsim.New(), pipe: wechatsim.NewPipe(),
			system: &logical.StaticSystemView{PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21.0"}}, logs: &safeBuffer{},
		},
	}
	x.forces = map[string]*modelForces{}
	settings := wechatsim.Account{Secret: testSecret, TokenLength: 32}
	settings.Lifetime = oneOf(x.draw("lifetime"), 400*time.Second, 900*time.Second, 1800*time.Second, maxLifetime)
	for _, appid := range modelAppIDs {
		x.m.sim.SetAccount(appid, settings)
		x.forces[appid] = &modelForces{}
	}
	for _, name := range modelNames {
		x.accounts[name] = &modelAccount{name: name, sure: true, maxTTL: map[int64]bool{}, disowned: map[string]bool{}, rotatedAt: map[string]string{}}
	}
	// Each schedule has some kinds of misfortune, and so some promises to be held.
	for _, kind := range modelMisfortune {
		x.kinds[kind.name] = chance(x.draw("kind", kind.name), kind.often) || slices.Contains(strings.Split(*modelKinds, ","), kind.name)
	}
	x.note("lifetime %s, %v", settings.Lifetime, x.kinds)
	return x
}

func (x *model) note(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.noteLocked(format, args...)
}

func (x *model) noteLocked(format string, args ...any) {
	x.trace = append(x.trace, traced{time.Now(), fmt.Sprintf(format, args...)})
}

// violated notes that a promise was broken.
func (x *model) violated(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.violatedLocked(format, args...)
}

func (x *model) violatedLocked(format string, args ...any) {
	x.noteLocked("VIOLATED: "+format, args...)
	x.broken = append(x.broken, x.trace[len(x.trace)-1].String())
}

// short is a token in a trace.
func short(token string) string { return token[:min(len(token), 6)] }

// ServeHTTP is the way to the platform: it knows by the secret whose call it sees, and
// may hold a call back until the engine has given it up.
func (x *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	var sent struct {
		AppID  string `json:"appid"`
		Secret string `json:"secret"`
		Forced bool   `json:"force_refresh"`
	}
	_ = json.Unmarshal(raw, &sent)
	quality, name, _ := strings.Cut(sent.Secret, ".")
	name, _, _ = strings.Cut(name, ".")
	c := &modelCall{
		name: strings.ReplaceAll(name, "-", "/"), appid: sent.AppID, group: sent.AppID + "@http://" + r.Host,
		forced: sent.Forced, good: quality == "good",
	}
	dice := x.draw("call", c.name, c.group, fmt.Sprint(c.forced))
	pause(dice)
	c.sent = time.Now()
	if c.good {
		raw = bytes.Replace(raw, []byte(sent.Secret), []byte(testSecret), 1)
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	x.mu.Lock()
	c.instance = x.instance
	x.calls = append(x.calls, c)
	if c.forced && !c.good {
		x.violatedLocked("%s: a forced call with a secret that was never accepted", c.name)
	}
	x.mu.Unlock()
	over := func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if c.over.IsZero() {
			c.over = time.Now()
		}
	}
	stop := context.AfterFunc(r.Context(), over)
	if !x.calm.Load() && x.kinds["late"] && chance(dice, map[bool]int{true: 10, false: 3}[c.forced]) {
		c.late = true
		time.Sleep(oneOf(dice, 1500*time.Millisecond, 7500*time.Millisecond, 20500*time.Millisecond))
	}
	x.mu.Lock()
	c.reached = time.Now()
	x.mu.Unlock()
	rec := &recorder{ResponseWriter: w, delay: func() {}}
	if !x.calm.Load() && x.kinds["latency"] && chance(dice, 25) {
		delay := oneOf(dice, 200*time.Millisecond, 900*time.Millisecond, 2600*time.Millisecond)
		rec.delay = sync.OnceFunc(func() {
			select {
			case <-time.After(delay):
			case <-r.Context().Done():
			}
		})
	}
	defer func() {
		stop()
		x.mu.Lock()
		defer x.mu.Unlock()
		if c.over.IsZero() {
			c.over = time.Now()
			if r.Context().Err() == nil { // the caller has given up at this very moment
				c.outcome, c.token = rec.outcome()
			}
			if c.outcome == callAnswered {
				x.ends[c.token] = c.reached.Add(rec.expiresIn + time.Second)
			}
		}
		x.noteLocked("  call %s %s forced=%t sent %s reached %s: %d %s", c.name, c.group, c.forced, c.sent.Format("05.000"), c.reached.Format("05.000"), c.outcome, short(c.token))
	}()
	x.m.sim.ServeHTTP(rec, r)
	rec.whole = true
}

// recorder keeps what the platform answers.
type recorder struct {
	http.ResponseWriter
	status    int
	body      bytes.Buffer
	whole     bool // it was not cut off
	taken     bool // the connection was
	expiresIn time.Duration
	delay     func() // holds the answer back
}

func (r *recorder) Unwrap() http.ResponseWriter { r.taken = true; return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	r.delay()
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.delay()
	r.body.Write(p)
	return r.ResponseWriter.Write(p)
}

// outcome is what the engine can know by the answer.
func (r *recorder) outcome() (callOutcome, string) {
	if !r.whole || r.taken {
		return callUnknown, ""
	}
	if r.status >= 400 && r.status < 500 {
		return callRefused, ""
	}
	var body struct {
		Token     string      `json:"access_token"`
		ExpiresIn json.Number `json:"expires_in"`
		Errcode   int         `json:"errcode"`
	}
	if r.status != 0 && r.status != http.StatusOK || json.Unmarshal(bytes.TrimPrefix(r.body.Bytes(), []byte("\ufeff")), &body) != nil {
		return callUnknown, ""
	}
	seconds, _ := body.ExpiresIn.Int64()
	r.expiresIn = time.Duration(seconds) * time.Second
	switch {
	case body.Errcode != 0 && body.Errcode != -1:
		return callRefused, ""
	case body.Errcode == 0 && body.Token != "" && r.expiresIn >= kept.MinTTL:
		return callAnswered, body.Token
	}
	return callUnknown, ""
}

// act is the part of the schedule in which things go wrong.
func (x *model) act() {
	stop := make(chan struct{})
	var background, workers sync.WaitGroup
	ticks, misfortunes := x.draw("ticks"), x.draw("misfortunes")
	background.Go(func() { x.every(stop, ticks, func() time.Duration { return time.Minute }, func() { x.tick(ticks) }) })
	background.Go(func() {
		x.every(stop, misfortunes, func() time.Duration {
			return oneOf(misfortunes, 300*time.Millisecond, 3*time.Second, 20*time.Second, time.Minute, 2*time.Minute)
		}, func() { x.misfortune(misfortunes) })
	})
	for i := range oneOf(x.draw("workers"), 1, 2, 3, 4) {
		dice := x.draw("worker", fmt.Sprint(i))
		workers.Go(func() {
			for range oneOf(dice, 8, 15, 25) {
				time.Sleep(oneOf(dice, 0, 0, 30*time.Millisecond, time.Second, 4*time.Second, 11*time.Second, 31*time.Second, 70*time.Second, 5*time.Minute))
				x.operate(dice)
			}
		})
	}
	workers.Wait()
	close(stop)
	background.Wait()
}

// every does something again and again until stop is closed.
func (x *model) every(stop chan struct{}, dice *rand.Rand, wait func() time.Duration, do func()) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(wait() + instant(dice)):
			do()
		}
	}
}

// enter begins what Vault does with the instance there is. leave has to follow.
func (x *model) enter(dice *rand.Rand) {
	_ = x.shared.Acquire(x.t.Context(), 1)
	pause(dice) // all that a reload kept waiting begin at the same moment
}

func (x *model) leave() { x.shared.Release(1) }

// request is a request to the instance there is.
func (x *model) request(op logical.Operation, path string, data map[string]any) (resp *logical.Response, err error) {
	b := x.m.backend
	req := &logical.Request{Operation: op, Path: path, Data: data, Storage: x.process, MountPoint: "wechat/"}
	if op == logical.UpdateOperation {
		found, exists, err := b.HandleExistenceCheck(x.t.Context(), req)
		if err != nil {
			return nil, err
		}
		if found && !exists {
			req.Operation = logical.CreateOperation
		}
	}
	resp, err = b.HandleRequest(x.t.Context(), req)
	if err == nil && resp != nil {
		err = resp.Error()
	}
	if x.process.isGone() {
		return nil, errCrashed // and what it answered
	}
	return resp, err
}

var errCrashed = errors.New("the process is gone")

func (x *model) tick(dice *rand.Rand) {
	x.enter(dice)
	defer x.leave()
	_, _ = x.request(logical.RollbackOperation, "", nil)
}

// modelFaults are what the platform does.
var modelFaults = []wechatsim.Fault{
	{Kind: "status", Status: http.StatusServiceUnavailable},
	{Kind: "status", Status: http.StatusNotFound},
	{Kind: "errcode", Errcode: -1},
	{Kind: "errcode", Errcode: 45009},
	{Kind: "errcode", Errcode: 40164},
	{Kind: "errcode", Errcode: 99999},
	{Kind: "reset"},
	{Kind: "hang"},
	{Kind: "hang", Hang: 3700 * time.Millisecond},
	{Kind: "lost"},
	{Kind: "truncate"},
	{Kind: "notjson"},
	{Kind: "notoken"},
	{Kind: "expires_in", ExpiresIn: "0"},
	{Kind: "sametoken"},
	{Kind: "quoted"},
	{Kind: "bom"},
}

// misfortune is what befalls the platform, storage, the clock and the mount.
func (x *model) misfortune(dice *rand.Rand) {
	switch what := oneOf(dice, modelEvents...); {
	case !x.kinds[what.kind]:
	case what.kind == "platform" && what.how == "ill":
		f := oneOf(dice, modelFaults...)
		f.Mode = oneOf(dice, "", "normal", "forced", "forced")
		f.Times = oneOf(dice, 1, 1, 2, 3, 0)
		x.lied = x.lied || f.Kind == "sametoken"
		x.note("platform: %s %d %d %s times %d", f.Kind, f.Errcode, f.Status, f.Mode, f.Times)
		x.m.sim.Inject(f)
	case what.kind == "platform":
		x.note("platform: well")
		x.m.sim.ClearFaults()
	case what.kind == "latency":
		d := oneOf(dice, 0, 0, 300*time.Millisecond, 1300*time.Millisecond, 4300*time.Millisecond)
		x.note("platform: latency %s", d)
		x.m.sim.SetLatency(d)
	case what.kind == "storage" && what.how == "ill":
		x.storageIll(dice)
	case what.kind == "storage":
		x.storageWell()
	case what.kind == "outside":
		appid := modelAppIDs[oneOf(dice, 0, 0, 1)]
		x.mu.Lock()
		token := x.m.sim.ForceOutside(appid)
		x.outside = append(x.outside, outsideForce{appid, time.Now()})
		for _, n := range x.accounts {
			n.disturbed++
		}
		x.noteLocked("outside: %s is replaced by %s", appid, short(token))
		x.mu.Unlock()
	case what.kind == "clock":
		by := oneOf(dice, -time.Hour, -2*time.Minute, -3*time.Second, 10*time.Second, 2*time.Minute, time.Hour)
		x.mu.Lock()
		x.offset.Add(int64(by))
		x.jumps = append(x.jumps, time.Now())
		if by < 0 {
			x.back = time.Now()
		}
		for _, n := range x.accounts {
			n.disturbed++
			n.revoking = false
		}
		x.noteLocked("clock: by %s", by)
		x.mu.Unlock()
	case what.kind == "blip":
		x.blip(dice)
	case what.kind == "burst":
		for range oneOf(dice, 2, 3, 5) {
			x.reload(oneOf(dice, "orderly", "abrupt", "crash", "crash"))
			time.Sleep(oneOf(dice, 300*time.Millisecond, 3*time.Second, 8*time.Second, 25*time.Second) + instant(dice))
		}
	default:
		x.reload(what.how)
	}
}

// storageIll lets storage fail, lose answers or be slow.
func (x *model) storageIll(dice *rand.Rand) {
	how := oneOf(dice, "writes fail", "all fails", "some fail", "answers get lost", "slow", "slow", "history fails")
	x.mu.Lock()
	x.ill, x.trouble = true, time.Now()
	x.noteLocked("storage: %s", how)
	x.mu.Unlock()
	x.m.storage.failing(nil)
	x.m.storage.hooked(nil)
	switch how {
	case "slow":
		x.m.storage.hooked(func(op, key string) {
			if dice := x.draw("slow", op, key); op == "put" || op == "delete" || chance(dice, 10) {
				time.Sleep(oneOf(dice, 0, 200*time.Millisecond, 1700*time.Millisecond, 6700*time.Millisecond))
			}
		})
	case "answers get lost":
		x.m.storage.losingAnswer(oneOf(dice, 1, 2, 3, 5))
	default:
		x.m.storage.failing(func(op, key string) error {
			write := op == "put" || op == "delete"
			if how == "all fails" || how == "writes fail" && write || how == "some fail" && chance(x.draw("fails", op, key), 40) ||
				how == "history fails" && write && strings.HasPrefix(key, tokenRecords) {
				return errStorage
			}
			return nil
		})
	}
}

func (x *model) storageWell() {
	x.m.storage.failing(nil)
	x.m.storage.hooked(nil)
	x.m.storage.losingAnswer(0)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ill {
		x.noteLocked("storage: well")
		x.ill, x.trouble = false, time.Now()
	}
}

// reload closes the mount and opens it again, which Vault does while no request is
// under way. If it is abrupt, those that are under way find the mount closed; in a
// crash they find that storage is gone, too.
func (x *model) reload(how string) {
	if how == "crash" {
		x.process.die()
	}
	if how != "orderly" {
		x.m.Cleanup(x.t.Context())
	}
	if err := x.shared.Acquire(x.t.Context(), maxRequests); err != nil {
		return
	}
	defer x.shared.Release(maxRequests)
	if how == "orderly" {
		x.m.Cleanup(x.t.Context())
	}
	x.closed = append(x.closed, x.m.backend)
	x.mu.Lock()
	x.noteLocked("reload: %s", how)
	x.instance++
	troubled := x.ill || !x.trouble.Before(x.opened)
	x.opened = time.Now()
	for _, n := range x.accounts {
		n.disturbed++
		if troubled { // a restart cannot know what storage did not take
			clear(n.disowned)
		}
		if troubled || n.overwritten {
			n.overwritten = false
			clear(n.rotatedAt)
		}
	}
	for _, f := range x.forces {
		if troubled { // and makes a forced call of a revocation again, at each of the two base_urls
			f.calls += min(len(modelURLs), f.revocations)
		}
	}
	x.mu.Unlock()
	x.open()
}

// open mounts the engine as a process of its own.
func (x *model) open() {
	x.process = newProcess(x)
	b, err := newBackend(x.t.Context(), &logical.BackendConfig{
		System: x.m.system, Logger: hclog.NewNullLogger(), StorageView: x.process, BackendUUID: "mount-1",
	}, &client{Client: upstream.Client{Dial: x.m.pipe.DialContext}})
	if err != nil {
		x.violated("the mount cannot be opened: %s", err)
		return
	}
	x.m.backend = b
	if err := x.m.Initialize(x.t.Context(), &logical.InitializationRequest{Storage: x.process}); err != nil {
		x.violated("initialize: %s", err)
	}
}

// operate is one operation of a caller.
func (x *model) operate(dice *rand.Rand) {
	x.enter(dice)
	n := x.operateOn(dice)
	x.leave()
	if x.unresolved(n) {
		x.enter(dice)
		defer x.leave()
		x.resolve(n)
	}
}

func (x *model) operateOn(dice *rand.Rand) *modelAccount {
	name := oneOf(dice, modelNames...)
	x.mu.Lock()
	n := x.accounts[name]
	create := n.writing == 0 && n.sure && !n.exists
	x.mu.Unlock()
	if create && chance(dice, 70) {
		x.write(n, dice)
		return n
	}
	switch oneOf(dice, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 5, 6, 6) {
	case 0:
		x.read(n)
	case 1:
		x.report(n, dice)
	case 2:
		x.rotate(n, false)
	case 3:
		x.rotate(n, true)
	case 4:
		x.write(n, dice)
	case 5:
		x.delete(n)
	case 6:
		x.status(n)
	}
	return n
}

// snapshot is what was known when a request was made.
type snapshot struct {
	modelAccount
	began    time.Time
	instance int
	jumps    int
}

func (x *model) begin(n *modelAccount) snapshot {
	x.mu.Lock()
	defer x.mu.Unlock()
	return snapshot{modelAccount: *n, began: time.Now(), instance: x.instance, jumps: len(x.jumps)}
}

// settled reports whether what is believed of the account has held since the snapshot
// was taken. x.mu is held.
func (x *model) settled(n *modelAccount, before snapshot) bool {
	return n.sure && n.writing == 0 && n.version == before.version && before.sure && before.writing == 0
}

func (x *model) read(n *modelAccount) {
	before := x.begin(n)
	resp, err := x.request(logical.ReadOperation, "token/"+n.name, nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if err != nil {
		x.noteLocked("read %s since %s: %s", n.name, before.began.Format("05.000"), err)
		x.checkAvailable(n, before, now)
		x.checkAsking(n, before, now)
		return
	}
	token := resp.Data["access_token"].(string)
	x.noteLocked("read %s since %s: %s ttl %d", n.name, before.began.Format("05.000"), short(token), resp.Data["ttl"])
	if now.After(before.began) {
		x.checkAvailable(n, before, now)
	}
	x.checkTTL(n, before, resp.Data["ttl"].(int64), token)
	if !x.settled(n, before) {
		return
	}
	if !n.exists {
		x.violatedLocked("%s: a token is read of an account that is not there", n.name)
		return
	}
	if resp.Data["appid"] != n.appid {
		x.violatedLocked("%s: the appid is %s instead of %s", n.name, resp.Data["appid"], n.appid)
	}
	x.checkToken(n, token, now)
	rotated := resp.Data["last_vault_rotation"].(string)
	for other, at := range n.rotatedAt {
		if (other == token) != (at == rotated) {
			x.violatedLocked("%s: last_vault_rotation of %s is %s, and that of %s was %s", n.name, short(token), rotated, short(other), at)
		}
	}
	n.rotatedAt[token] = rotated
	n.held, n.heldAt = token, now
}

// checkAsking sees to it that the engine does not leave WeChat unasked for longer than
// ten minutes while reads fail. x.mu is held.
func (x *model) checkAsking(n *modelAccount, before snapshot, now time.Time) {
	const patience = 11 * time.Minute // with Vault's tick
	long := now.Add(-patience)
	recent := func(at time.Time) bool { return at.After(long) }
	if !x.settled(n, before) || !n.exists || recent(n.writtenAt) || recent(x.opened) || x.ill || recent(x.trouble) ||
		slices.ContainsFunc(x.jumps, recent) || x.blurred(now, now) ||
		slices.ContainsFunc(x.calls, func(c *modelCall) bool { return c.group == n.group() && recent(c.sent) }) {
		return
	}
	x.violatedLocked("%s: reads fail, and WeChat was not asked for %s", n.name, patience)
}

// checkAsked sees to it that WeChat was asked for a report that nothing came of, or
// shortly before. x.mu is held.
func (x *model) checkAsked(n *modelAccount, before snapshot) {
	since := before.began.Add(-minCallInterval - time.Second)
	if !x.settled(n, before) || len(x.jumps) > 0 || slices.ContainsFunc(x.calls, func(c *modelCall) bool {
		return c.group == n.group() && c.outcome == callAnswered && !c.over.Before(since)
	}) {
		return
	}
	x.violatedLocked("%s: a report is answered from memory, and WeChat was not asked since %s", n.name, since.Format("15:04:05.000"))
}

// checkTTL holds a ttl against the bounds of the contract. x.mu is held.
func (x *model) checkTTL(n *modelAccount, before snapshot, ttl int64, token string) {
	if ttl < 5 {
		x.violatedLocked("%s: a ttl of %d", n.name, ttl)
	}
	if x.settled(n, before) && n.exists && !n.maxTTL[0] {
		limit := int64(0)
		for m := range n.maxTTL {
			limit = max(limit, m)
		}
		if ttl > limit {
			x.violatedLocked("%s: a ttl of %d, with a max_ttl of %d", n.name, ttl, limit)
		}
	}
	end, known := x.ends[token]
	if !known {
		return
	}
	if over := time.Now().Add(time.Duration(ttl) * time.Second).Sub(end); over > 0 && !x.blurred(before.began, time.Now()) && !x.setBack(n) && (over >= 8*time.Second || x.back.IsZero()) {
		x.violatedLocked("%s: a ttl of %d ends %s after the token", n.name, ttl, over)
	}
}

// setBack reports whether the clock was set back since WeChat last told the end of
// the account's token. x.mu is held.
func (x *model) setBack(n *modelAccount) bool {
	if x.back.IsZero() {
		return false
	}
	return !slices.ContainsFunc(x.calls, func(c *modelCall) bool {
		return c.group == n.group() && c.outcome == callAnswered && c.sent.After(x.back) && c.instance == x.instance
	})
}

// checkAvailable sees to it that a read neither fails nor waits while a token holds.
// x.mu is held.
func (x *model) checkAvailable(n *modelAccount, before snapshot, now time.Time) {
	if x.blurred(before.heldAt.Add(-10*time.Minute), now) {
		return
	}
	if before.held == "" || !x.settled(n, before) || n.disturbed != before.disturbed || x.instance != before.instance || len(x.jumps) > before.jumps ||
		!before.heldAt.After(x.opened) || len(x.jumps) > 0 && x.jumps[len(x.jumps)-1].After(before.heldAt.Add(-10*time.Minute)) { // WeChat is asked about all tokens
		return
	}
	if _, errcode := x.m.sim.Check(before.held); errcode != 0 {
		return
	}
	for _, c := range x.calls {
		if c.forced && c.group == n.group() && (c.over.IsZero() || !c.over.Before(before.began) || c.outcome != callRefused && !c.over.Before(before.heldAt)) {
			return
		}
	}
	for _, o := range x.outside { // what another name notices puts it in doubt
		if o.appid == n.appid && o.at.After(before.heldAt.Add(-2*maxLifetime)) {
			return
		}
	}
	left := x.ends[before.held].Sub(now)
	if left < 8*time.Second {
		return
	}
	if left > overlap+2*time.Second {
		x.violatedLocked("%s: a read failed or waited %s although %s holds for %s", n.name, now.Sub(before.began), short(before.held), left)
	}
}

// checkToken holds a token that was handed out against what was seen at the platform.
// x.mu is held.
func (x *model) checkToken(n *modelAccount, token string, now time.Time) {
	if n.disowned[token] {
		x.violatedLocked("%s: %s is handed out, which was said to be replaced", n.name, short(token))
	}
	appid, errcode := x.m.sim.Check(token)
	if appid != n.appid {
		x.violatedLocked("%s: %s is a token of %q", n.name, short(token), appid)
		return
	}
	issued := x.issued(token)
	for _, f := range x.calls {
		if !f.forced || f.group != n.group() || !f.sent.Before(now) || !issued.Before(f.sent) || f.token == token {
			continue
		}
		again := slices.ContainsFunc(x.calls, func(c *modelCall) bool { // for any of the names that share it
			return c.group == f.group && c.outcome == callAnswered && c.token == token && !c.over.After(now) && !c.reached.Before(f.sent)
		})
		switch {
		case again:
		case f.over.IsZero() || f.over.After(now):
			x.violatedLocked("%s: %s is handed out while a forced call is in the air", n.name, short(token))
		case f.over.Equal(now) || f.outcome == callRefused:
		default:
			x.violatedLocked("%s: %s is handed out although nothing has confirmed it since the forced call of %s", n.name, short(token), f.sent.Format("15:04:05.000"))
		}
	}
	switch {
	case errcode == 42001 && !x.blurred(now, now) && !x.setBack(n) && (x.back.IsZero() || now.Sub(x.ends[token]) > 8*time.Second):
		x.violatedLocked("%s: %s is handed out after its end", n.name, short(token))
	case errcode == 40001 && x.noticed(n, token, issued, now):
		x.violatedLocked("%s: %s is handed out although it was noticed to be replaced", n.name, short(token))
	}
}

// issued returns when a token was seen first. x.mu is held.
func (x *model) issued(token string) time.Time {
	first := time.Time{}
	for _, c := range x.calls {
		if c.token == token && (first.IsZero() || c.reached.Before(first)) {
			first = c.reached
		}
	}
	return first
}

// noticed reports whether the engine has seen since that a dead token of the account
// was replaced: one of the names that share it was given another one. x.mu is held.
func (x *model) noticed(n *modelAccount, token string, issued, now time.Time) bool {
	if len(x.jumps) > 0 && x.jumps[len(x.jumps)-1].After(issued) {
		return false
	}
	if x.blurred(issued, now) {
		return false // how long it lives is not known since, so that another one is no news
	}
	killed := now
	for _, o := range x.outside {
		if o.appid == n.appid && o.at.After(issued) && o.at.Before(killed) {
			killed = o.at
		}
	}
	for _, c := range x.m.sim.Calls(n.appid) {
		if c.Forced && c.Issued && c.Time.After(issued) && c.Time.Before(killed) {
			killed = c.Time
		}
	}
	for _, c := range x.calls {
		if c.group != n.group() || c.outcome != callAnswered || c.token == token || c.instance != x.instance ||
			!c.reached.After(killed) || x.blurred(c.sent, c.over) || !c.over.Before(now) || !c.sent.After(x.opened) || x.ends[token].Sub(c.sent) < overlap+10*time.Second {
			continue
		}
		alone := !slices.ContainsFunc(x.calls, func(d *modelCall) bool {
			return d != c && d.group == c.group && !d.sent.After(c.over) && (d.over.IsZero() || !d.over.Before(c.sent))
		})
		if alone {
			return true
		}
	}
	return false
}

func (x *model) report(n *modelAccount, dice *rand.Rand) {
	before := x.begin(n)
	data := map[string]any{}
	rejected := oneOf(dice, before.held, before.held, "", "unknown", before.held+"\n", "earlier")
	if rejected == "earlier" {
		x.mu.Lock()
		if rejected = ""; len(n.rotatedAt) > 0 {
			rejected = oneOf(dice, slices.Sorted(maps.Keys(n.rotatedAt))...)
		}
		x.mu.Unlock()
	}
	if rejected != "" {
		data["rejected_token"] = rejected
	}
	resp, err := x.request(logical.UpdateOperation, "refresh/"+n.name, data)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.noteLocked("report %s %q since %s: %s", n.name, short(rejected), before.began.Format("05.000"), err)
		return
	}
	x.noteLocked("report %s %q since %s: %v", n.name, short(rejected), before.began.Format("05.000"), resp.Data)
	x.checkTTL(n, before, resp.Data["ttl"].(int64), "")
	if resp.Data["changed"] == false {
		x.checkAsked(n, before)
	}
	if rejected := strings.TrimSpace(rejected); resp.Data["changed"] == true && rejected != "" && rejected != "unknown" && x.settled(n, before) {
		n.disowned[rejected] = true
	}
}

func (x *model) rotate(n *modelAccount, revoke bool) {
	x.mu.Lock()
	for appid, f := range x.forces {
		switch {
		case n.sure && n.writing == 0 && n.appid != appid:
		case revoke:
			f.calls += 2
			f.revocations++
		default:
			f.calls++
		}
	}
	from := time.Time{}
	for _, c := range x.calls {
		if c.name == n.name && c.appid == n.appid && c.outcome == callAnswered && c.over.Before(time.Now()) {
			from = c.reached
		}
	}
	x.mu.Unlock()
	before := x.begin(n)
	data := map[string]any{}
	if revoke {
		data["revoke"] = true
	}
	resp, err := x.request(logical.UpdateOperation, "rotate/"+n.name, data)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.noteLocked("rotate %s revoke %t since %s: %v %v", n.name, revoke, before.began.Format("05.000"), err, resp != nil && len(resp.Warnings) > 0)
	pending := err == nil || strings.Contains(err.Error(), "the revocation goes on")
	if revoke && pending && x.settled(n, before) && n.exists && len(x.jumps) == before.jumps && before.instance == x.instance {
		n.revoking, n.revokedFrom, n.revokedAt = true, from, before.began
	}
}

// write writes a configuration.
func (x *model) write(n *modelAccount, dice *rand.Rand) {
	x.mu.Lock()
	n.secrets++
	fields := map[string]any{}
	next := modelAccount{appid: n.appid, baseURL: n.baseURL, secret: n.secret}
	maxTTL, withTTL := int64(0), false
	roll := func(percent int) bool { return chance(dice, percent) }
	create := !n.exists
	if create || roll(15) {
		next.appid = modelAppIDs[[]int{0, 0, 0, 1}[dice.IntN(4)]]
		fields["appid"] = next.appid
	}
	if create || roll(15) {
		next.baseURL = modelURLs[[]int{0, 0, 0, 1}[dice.IntN(4)]]
		fields["base_url"] = next.baseURL
	}
	if create || fields["base_url"] != nil || roll(40) {
		if fields["appid"] != nil {
			next.baseURL = cmp.Or(next.baseURL, modelURLs[0])
			fields["base_url"] = next.baseURL // a delete that it overlaps may come first
		}
		quality := "good"
		if next.secret = !roll(12); !next.secret {
			quality = "bad"
		}
		fields["secret"] = fmt.Sprintf("%s.%s.%d", quality, strings.ReplaceAll(n.name, "/", "-"), n.secrets)
	}
	if create || roll(40) {
		maxTTL, withTTL = []int64{0, 10, 60, 240}[dice.IntN(4)], true
		fields["max_ttl"] = maxTTL
	}
	if create || roll(30) {
		fields["sync_interval"] = []int{0, 60, 300, 300}[dice.IntN(4)]
	}
	if create || roll(30) {
		fields["request_timeout"] = []int{1, 2, 5}[dice.IntN(3)]
	}
	if roll(40) {
		fields["verify"] = roll(20)
	}
	n.version++
	n.writing++
	n.disturbed++
	alone, version := n.writing == 1 && n.sure, n.version
	moves := n.exists && (next.appid != n.appid)
	if withTTL {
		n.maxTTL[maxTTL] = true
	}
	if moves || !n.sure {
		n.revoking = false
	}
	for appid, f := range x.forces {
		if fields["base_url"] != nil && f.revocations > 0 && (!n.sure || appid == n.appid) {
			f.calls += 2 // a revocation moves along, and goes on for the names that stay
		}
	}
	x.mu.Unlock()
	began := time.Now()
	_, err := x.request(logical.UpdateOperation, "config/"+n.name, fields)
	x.mu.Lock()
	shown := fmt.Sprint(fields)
	x.noteLocked("write %s since %s: %s: %v", n.name, began.Format("05.000"), shown, err)
	n.disturbed++
	n.writing--
	n.writtenAt = time.Now()
	alone = alone && n.version == version
	n.version++
	other := !n.exists || next.appid != n.appid || next.baseURL != n.baseURL
	if err != nil || !alone {
		n.sure, n.revoking, n.secret = false, false, false
		n.forgetTokens()
	} else {
		if other {
			n.forgetTokens()
		}
		n.exists, n.appid, n.baseURL, n.secret = true, next.appid, next.baseURL, next.secret
		if withTTL {
			clear(n.maxTTL)
			n.maxTTL[maxTTL] = true
		}
	}
	x.mu.Unlock()
}

// forgetTokens is for an account that is, or may be, another one.
func (n *modelAccount) forgetTokens() {
	n.held = ""
	clear(n.disowned)
	clear(n.rotatedAt)
}

func (x *model) delete(n *modelAccount) {
	x.mu.Lock()
	n.version++
	n.writing++
	n.disturbed++
	n.revoking = false
	alone, version := n.writing == 1, n.version
	x.mu.Unlock()
	began := time.Now()
	_, err := x.request(logical.DeleteOperation, "config/"+n.name, nil)
	x.mu.Lock()
	x.noteLocked("delete %s since %s: %v", n.name, began.Format("05.000"), err)
	n.writing--
	n.writtenAt = time.Now()
	n.disturbed++
	alone = alone && n.version == version
	n.version++
	n.revoking = false
	n.forgetTokens()
	if n.sure = err == nil && alone; n.sure {
		n.exists = false
		clear(n.maxTTL)
	}
	x.mu.Unlock()
}

// unresolved reports whether storage has to tell what became of a write.
func (x *model) unresolved(n *modelAccount) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !n.sure && n.writing == 0
}

// resolve has storage tell what became of a write that failed.
func (x *model) resolve(n *modelAccount) {
	if !x.unresolved(n) {
		return
	}
	x.mu.Lock()
	version := n.version
	x.mu.Unlock()
	resp, err := x.request(logical.ReadOperation, "config/"+n.name, nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil || n.version != version || n.writing > 0 {
		return
	}
	n.version++
	n.sure, n.exists = true, resp != nil
	clear(n.maxTTL)
	if resp != nil {
		n.appid, n.baseURL = resp.Data["appid"].(string), resp.Data["base_url"].(string)
		n.maxTTL[resp.Data["max_ttl"].(int64)] = true
	}
	n.forgetTokens()
}

func (x *model) status(n *modelAccount) {
	before := x.begin(n)
	resp, err := x.request(logical.ReadOperation, "status/"+n.name, nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		return
	}
	revocation := resp.Data["revocation"]
	x.noteLocked("status %s since %s: %v revocation %v", n.name, before.began.Format("05.000"), resp.Data["state"], revocation)
	if !before.revoking || !n.revoking || before.revokedFrom != n.revokedFrom || !x.settled(n, before) || revocation == revocationPending ||
		x.ill || !x.trouble.Before(x.opened) || len(x.jumps) > 0 && x.jumps[len(x.jumps)-1].After(n.revokedFrom) {
		return
	}
	n.revoking = false
	if revocation == nil && time.Since(n.revokedAt) >= leakAge {
		return // it was given up
	}
	if issued, killed := x.replaced(n); issued < 2 || killed < 1 && !x.lied {
		x.violatedLocked("%s: the revocation is %v after %d replacements, %d of them forced", n.name, revocation, issued, killed)
	}
}

// replaced counts the replacements of the account's token since WeChat named the one
// that leaked, and how many of them were forced. One that WeChat made by itself counts:
// the engine cannot tell it from the forced one whose answer brings it. x.mu is held.
func (x *model) replaced(n *modelAccount) (issued, forced int) {
	for _, o := range x.outside {
		if o.appid == n.appid && !o.at.Before(n.revokedFrom) {
			issued++
			forced++
		}
	}
	for _, c := range x.m.sim.Calls(n.appid) {
		if c.Issued && c.Time.After(n.revokedFrom) {
			issued++
			if c.Forced {
				forced++
			}
		}
	}
	return issued, forced
}

// recover sees to it that everything is well again once nothing goes wrong any more.
func (x *model) recover() {
	dice := x.draw("recover")
	x.note("all is well from here on")
	x.calm.Store(true)
	x.m.sim.ClearFaults()
	x.m.sim.SetLatency(0)
	x.storageWell()
	for range 12 { // the longest wait is ten minutes
		time.Sleep(time.Minute)
		x.tick(dice)
	}
	synctest.Wait()
	for _, name := range modelNames {
		n := x.accounts[name]
		x.resolve(n)
		if !n.sure {
			x.violated("%s: its configuration cannot be read", n.name)
		}
		if !n.exists {
			continue
		}
		if !n.secret {
			if _, err := x.request(logical.UpdateOperation, "config/"+n.name, map[string]any{"secret": fmt.Sprintf("good.%s.last", strings.ReplaceAll(n.name, "/", "-"))}); err != nil {
				x.violated("%s: a new secret is refused: %s", n.name, err)
			}
			x.mu.Lock()
			n.secret = true
			x.mu.Unlock()
		}
		x.read(n)
		time.Sleep(minCallInterval + time.Second)
		if _, err := x.request(logical.UpdateOperation, "refresh/"+n.name, nil); err != nil {
			x.violated("%s: a report is answered %s", n.name, err)
		}
		x.read(n)
		resp, err := x.request(logical.ReadOperation, "token/"+n.name, nil)
		if err != nil {
			x.violated("%s: it does not recover: %s", n.name, err)
			continue
		}
		if _, errcode := x.m.sim.Check(resp.Data["access_token"].(string)); errcode != 0 {
			x.violated("%s: its token is dead although it was reported", n.name)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if resp, err = x.request(logical.ReadOperation, "status/"+n.name, nil); err != nil || resp.Data["state"] != stateHealthy {
			x.violated("%s: its state is %v %v", n.name, resp.Data, err)
		}
	}
	x.finishRevocations(dice)
	x.tick(dice)
	stored := x.m.stored()
	for _, key := range stored {
		name, isToken := strings.CutPrefix(key, tokenPrefix)
		if isToken && !slices.Contains(stored, configPrefix+name) || strings.HasPrefix(key, "wal/") {
			x.violated("%s is left in storage", key)
		}
	}
}

// finishRevocations waits for what is pending: not longer than the distance of two
// attempts, unless the day's budget is used up.
func (x *model) finishRevocations(dice *rand.Rand) {
	for minutes := 0; ; minutes += 10 {
		pending := ""
		for _, name := range modelNames {
			n := x.accounts[name]
			if !n.exists {
				continue
			}
			resp, err := x.request(logical.ReadOperation, "status/"+n.name, nil)
			if err != nil {
				x.violated("%s: no status: %s", n.name, err)
				return
			}
			if resp.Data["revocation"] == revocationPending {
				pending = n.name
				if resp.Data["rotations_remaining"] == 0 && minutes < 25*60 {
					minutes = -10 // by the end of the day
				}
			} else {
				x.status(n)
			}
		}
		if pending == "" {
			return
		}
		if minutes > 4*60+20 {
			x.violated("%s: its revocation does not end", pending)
			return
		}
		for range 10 {
			time.Sleep(time.Minute)
			x.tick(dice)
		}
	}
}

// remove deletes all accounts and sees to it that nothing is left of them.
func (x *model) remove() {
	dice := x.draw("remove")
	for _, name := range modelNames {
		n := x.accounts[name]
		if _, err := x.request(logical.DeleteOperation, "config/"+n.name, nil); err != nil {
			x.violated("%s: it cannot be deleted: %s", n.name, err)
		}
	}
	for range 2 {
		time.Sleep(time.Minute)
		x.tick(dice)
		synctest.Wait()
	}
	for _, key := range x.m.stored() {
		if !strings.HasPrefix(key, tokenRecords) {
			x.violated("%s is left in storage", key)
		}
	}
	k := x.m.keeper
	k.mu.RLock()
	defer k.mu.RUnlock()
	if len(k.doors) > 0 || len(k.holders) > 0 || k.schedule.Len() > 0 {
		x.violated("memory still holds %d names, %d holders, %d wakes", len(k.doors), len(k.holders), k.schedule.Len())
	}
}

// clockMoved reports whether the clock was set between two times: how long a call that
// was in the air then took, and so what it brought, the engine cannot tell.
func (x *model) clockMoved(from, to time.Time) bool {
	within := func(at time.Time) bool { return !at.Before(from) && !at.After(to) }
	return slices.ContainsFunc(x.jumps, within) ||
		slices.ContainsFunc(x.blips, func(b blip) bool { return within(b.from) || within(b.until) })
}

// checkCalls holds the calls of the platform against what the engine may make.
func (x *model) checkCalls() {
	effective := map[string]int{}
	last := map[string]*modelCall{} // the forced call of each group
	open := map[string]*modelCall{}
	perDay := map[string][]time.Time{}
	for _, c := range x.calls {
		if o := open[c.name+c.group]; o != nil && (o.over.IsZero() || c.sent.Before(o.over)) {
			x.violated("%s: two calls in flight, sent %s and %s", c.name, o.sent.Format("15:04:05.000"), c.sent.Format("15:04:05.000"))
		}
		open[c.name+c.group] = c
		if !c.forced || c.outcome == callRefused {
			continue
		}
		alone := !slices.ContainsFunc(x.calls, func(d *modelCall) bool { // or whose call it was is not known
			return d != c && d.forced && d.appid == c.appid && d.reached.Equal(c.reached)
		})
		if alone && c.outcome == callAnswered && !x.clockMoved(c.sent, c.over) && slices.ContainsFunc(x.m.sim.Calls(c.appid), func(seen wechatsim.Call) bool {
			return seen.Forced && seen.Issued && seen.Time.Equal(c.reached)
		}) {
			effective[c.appid]++
		}
		perDay[c.group] = append(perDay[c.group], c.sent)
		if l := last[c.group]; l != nil && c.reached.Sub(l.reached) < forcedSpacing && !l.late && !slices.ContainsFunc(x.jumps, func(at time.Time) bool {
			return at.After(l.sent.Add(-storageTimeout)) && !at.After(c.reached) // since it was announced
		}) && !x.blurred(l.sent, c.reached) && !slices.ContainsFunc(x.overwritten, func(at time.Time) bool {
			return l.instance != c.instance && at.After(l.sent.Add(-time.Second)) && at.Before(c.reached)
		}) {
			x.violated("%s: a forced call %s after the last", c.group, c.reached.Sub(l.reached))
		}
		last[c.group] = c
	}
	for group, sent := range perDay {
		for i := range sent {
			if i >= forcedPerDay && sent[i].Sub(sent[i-forcedPerDay]) < day && len(x.jumps) == 0 {
				x.violated("%s: more than %d forced calls in a day", group, forcedPerDay)
			}
		}
	}
	for appid, count := range effective {
		if asked := x.forces[appid].calls; count > asked {
			x.violated("%s: %d effective forced calls, %d were asked for", appid, count, asked)
		}
	}
}
