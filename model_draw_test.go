package wechat

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// What makes a seed repeat:
//
//   - Each goroutine of the model has dice of its own, and each operation of storage and
//     each call of WeChat has some, by what it is and how many of these there were. So no
//     draw depends on which of two goroutines comes first.
//   - Each of them lasts a fraction of a millisecond that no other does. Fake time goes on
//     when all goroutines wait, so one of them runs at a time, and their order is drawn.
//   - What the engine, the SDK and the simulator draw is crypto/rand, which is seeded.

// draw returns the dice for one occasion.
func (x *model) draw(what ...string) *rand.Rand {
	occasion := strings.Join(what, " ")
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drawn[occasion]++
	sum := fnv.New64a()
	_, _ = fmt.Fprint(sum, occasion, " ", x.drawn[occasion])
	return rand.New(rand.NewPCG(x.seed, sum.Sum64()))
}

// oneOf draws one of the values.
func oneOf[T any](dice *rand.Rand, values ...T) T { return values[dice.IntN(len(values))] }

// chance is true in so many of a hundred cases.
func chance(dice *rand.Rand, percent int) bool { return dice.IntN(100) < percent }

// instant is a time that no other has.
func instant(dice *rand.Rand) time.Duration {
	return 1 + time.Duration(dice.Int64N(int64(time.Millisecond)))
}

// pause lets everything else come to rest that is to happen at this moment.
func pause(dice *rand.Rand) { time.Sleep(instant(dice)) }

// traced is one line of a trace.
type traced struct {
	at   time.Time
	text string
}

func (l traced) String() string { return l.at.Format("15:04:05.000 ") + l.text }

// lines are the trace. What happened at the same moment has no order.
func (x *model) lines() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	slices.SortStableFunc(x.trace, func(a, b traced) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return strings.Compare(a.text, b.text)
	})
	var all []string
	for _, l := range x.trace {
		all = append(all, l.String())
	}
	return all
}

// failedSeedsFile has the seeds that have found something.
const failedSeedsFile = "testdata/model/seeds"

func failedSeeds(t *testing.T) (seeds []uint64) {
	t.Helper()
	raw, err := os.ReadFile(failedSeedsFile)
	require.NoError(t, err)
	for line := range strings.Lines(string(raw)) {
		line, _, _ = strings.Cut(line, "#")
		for word := range strings.FieldsSeq(line) {
			seed, err := strconv.ParseUint(word, 10, 64)
			require.NoError(t, err)
			seeds = append(seeds, seed)
		}
	}
	return seeds
}

var modelRepeats = flag.Int("model.repeats", 10, "how many seeds have to repeat")

// A seed need not repeat at once: goroutines that one moment wakes together follow each
// other as they please, which shows in one pair of runs of a thousand, and under the
// race detector, which shuffles them, in one of twenty-five.
func TestASeedRepeats(t *testing.T) {
	for i := range uint64(*modelRepeats) {
		seed := *modelFirst + i
		first, second := runSchedule(t, seed), runSchedule(t, seed)
		for tries := 0; tries < 4 && !slices.Equal(first, second); tries++ {
			t.Log(difference(seed, first, second))
			first, second = second, runSchedule(t, seed)
		}
		if !slices.Equal(first, second) {
			t.Error(difference(seed, first, second))
		}
	}
}

// difference shows where two traces of a seed part.
func difference(seed uint64, first, second []string) string {
	n := 0
	for n < min(len(first), len(second)) && first[n] == second[n] {
		n++
	}
	return fmt.Sprintf("seed %d: after\n%s\ncomes\n%s\nand another time\n%s", seed, strings.Join(first[max(0, n-8):n], "\n"),
		strings.Join(first[n:min(len(first), n+6)], "\n"), strings.Join(second[n:min(len(second), n+6)], "\n"))
}

// modelMisfortune is the kinds of misfortune that there are, and how many of a hundred
// schedules have them.
var modelMisfortune = []struct {
	name  string
	often int
}{
	{"platform", 80},
	{"latency", 60},
	{"storage", 60},
	{"outside", 50},
	{"clock", 25}, // is set
	{"reload", 60},
	{"late", 40},  // calls reach the platform after the engine has given them up
	{"blip", 30},  // the clock is ahead for a moment
	{"burst", 25}, // of reloads
	{"stray", 25}, // writes of a process that is gone reach storage late
}

// modelEvent is one of them that happens.
type modelEvent struct{ kind, how string }

var modelEvents = []modelEvent{
	{"platform", "ill"},
	{"platform", "ill"},
	{"platform", "ill"},
	{"platform", "ill"},
	{"platform", "well"},
	{"platform", "well"},
	{"latency", ""},
	{"latency", ""},
	{"storage", "ill"},
	{"storage", "ill"},
	{"storage", "well"},
	{"storage", "well"},
	{"outside", ""},
	{"clock", ""},
	{"reload", "orderly"},
	{"reload", "abrupt"},
	{"reload", "crash"},
	{"blip", ""},
	{"blip", ""},
	{"burst", ""},
	{"burst", ""},
}

// blip is a time in which the machine's clock was ahead.
type blip struct{ from, until time.Time }

// blip sets the clock ahead and back again. Meanwhile the network may be down, as it
// is when a machine resumes.
func (x *model) blip(dice *rand.Rand) {
	by := oneOf(dice, 20*time.Minute, time.Hour, 8*time.Hour, 8*time.Hour)
	down := x.kinds["platform"] && chance(dice, 50)
	x.mu.Lock()
	x.offset.Add(int64(by))
	x.blips = append(x.blips, blip{from: time.Now()})
	for _, n := range x.accounts {
		n.disturbed++
	}
	x.noteLocked("clock: ahead by %s, network down: %t", by, down)
	x.mu.Unlock()
	if down {
		x.m.sim.ClearFaults()
		x.m.sim.Inject(wechatsim.Fault{Kind: "reset"})
	}
	for range oneOf(dice, 0, 1, 1, 2, 3) {
		time.Sleep(oneOf(dice, 0, time.Second, 5*time.Second, 13*time.Second) + instant(dice))
		x.operate(dice)
	}
	time.Sleep(oneOf(dice, time.Second, 5*time.Second, 20*time.Second) + instant(dice))
	if down {
		x.m.sim.ClearFaults()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.offset.Add(-int64(by))
	x.blips[len(x.blips)-1].until = time.Now()
	for _, n := range x.accounts {
		n.disturbed++
	}
	x.noteLocked("clock: right again")
}

// blurred reports whether the clock was ahead between two times, or Vault's tick has not
// come since. x.mu is held.
func (x *model) blurred(from, to time.Time) bool {
	return slices.ContainsFunc(x.blips, func(b blip) bool {
		return !b.from.After(to) && (b.until.IsZero() || !b.until.Add(75*time.Second).Before(from))
	})
}

// process is the storage of a plugin's process.
type process struct {
	logical.Storage
	x        *model
	instance int
	once     sync.Once
	gone     chan struct{} // closed when the process is
}

// newProcess is that of the instance which is about to begin.
func newProcess(x *model) *process {
	x.mu.Lock()
	defer x.mu.Unlock()
	return &process{Storage: x.m.storage, x: x, instance: x.instance, gone: make(chan struct{})}
}

func (p *process) die() { p.once.Do(func() { close(p.gone) }) }

func (p *process) begin(op, key string) error {
	if pause(p.x.draw("storage", op, key)); p.isGone() {
		return errStorage
	}
	return nil
}

func (p *process) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// write makes a write that may reach storage late, whatever becomes of the process. Those
// of configurations do not: what a person has done cannot be told from what they did
// before and saw fail.
func (p *process) write(op, key string, do func() error) error {
	if err := p.begin(op, key); err != nil {
		return err
	}
	dice := p.x.draw("stray", op, key)
	if p.x.calm.Load() || !p.x.kinds["stray"] || strings.HasPrefix(key, configPrefix) || !chance(dice, 15) {
		return do()
	}
	late := oneOf(dice, 700*time.Millisecond, 4*time.Second, 9*time.Second, 20*time.Second) + instant(dice)
	done := make(chan error, 1)
	p.x.strays.Go(func() {
		time.Sleep(late)
		done <- do()
		p.x.landed(p, key)
	})
	select {
	case err := <-done:
		return err
	case <-p.gone:
		return errStorage
	}
}

// landed notes that a late write has reached storage. What one of a closed instance has
// taken from the next one cannot be known again if that one ends before it has looked.
func (x *model) landed(p *process, key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.noteLocked("  late, by instance %d of %d: %s", p.instance, x.instance, key)
	if p.instance == x.instance {
		return
	}
	if strings.HasPrefix(key, tokenRecords) {
		x.overwritten = append(x.overwritten, time.Now())
	}
	for _, n := range x.accounts {
		cfg := newConfig()
		if cfg.AppID, cfg.BaseURL = n.appid, n.baseURL; key == weixin.recordKey(tokenSlot, weixin.identity(cfg)) {
			n.overwritten = true // the very token may have been told by both, at times of their own
			clear(n.rotatedAt)
		}
	}
}

func (p *process) List(ctx context.Context, prefix string) ([]string, error) {
	if err := p.begin("list", prefix); err != nil {
		return nil, err
	}
	return p.Storage.List(ctx, prefix)
}

func (p *process) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := p.begin("get", key); err != nil {
		return nil, err
	}
	return p.Storage.Get(ctx, key)
}

func (p *process) Put(ctx context.Context, entry *logical.StorageEntry) error {
	ctx = context.WithoutCancel(ctx)
	return p.write("put", entry.Key, func() error { return p.Storage.Put(ctx, entry) })
}

func (p *process) Delete(ctx context.Context, key string) error {
	ctx = context.WithoutCancel(ctx)
	return p.write("delete", key, func() error { return p.Storage.Delete(ctx, key) })
}
