package wechat

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// maxRemembered and maxRememberedSize bound the outcomes that are remembered, by
	// their number and by their size in bytes: the oldest go first.
	maxRemembered     = 100_000
	maxRememberedSize = 64 << 20
)

// errClosing is what requests get whose flight the end of the mount has cut short.
var errClosing = errors.New("the mount is being closed: try again")

// ruleNoPlace is of a request for which there was no place in time.
var ruleNoPlace = rule{
	classQuota, http.StatusServiceUnavailable, backoffNone,
	"too many calls of WeChat are in flight", "try again in some seconds; if it lasts, find out why WeChat answers slowly",
}

// flightKey says which requests ask for the same. It is a digest: what they ask with
// is secret.
type flightKey [sha256.Size]byte

// outcome is what came of a flight.
type outcome struct {
	result any
	err    error

	// kept says that whoever asks for the same soon gets the same, and size is about
	// how many bytes that takes.
	kept bool
	size int
}

// flights makes calls that several requests may ask for at the same time: one call
// answers all who ask for the same while it is in the air, and for a while after.
//
// A call does not end with the request that caused it: once it is sent it is
// finished, since WeChat may act on it. Before that it needs a place, and it gives up
// waiting for one when nobody waits for the call any more.
type flights struct {
	ctx      context.Context     // ends with the mount, and with it every call
	places   *semaphore.Weighted // nil is without limit
	memory   time.Duration       // how long an outcome is remembered
	mu       sync.Mutex          // guards what follows, and the fields of each flight
	inAir    map[flightKey]*flight
	known    map[flightKey]*list.Element // of outcomes
	outcomes *list.List                  // of *remembered, the oldest first
	size     int                         // of all outcomes together, in bytes
	forget   *time.Timer                 // runs while there are outcomes
}

type flight struct {
	waiting int                // how many requests wait for it
	sent    bool               // it has a place, and is finished whatever happens
	giveUp  context.CancelFunc // ends its wait for a place
	done    chan struct{}      // closed when outcome is set
	outcome outcome
}

type remembered struct {
	outcome
	key  flightKey
	ends time.Time
}

func newFlights(ctx context.Context, places *semaphore.Weighted, memory time.Duration) *flights {
	f := &flights{
		ctx: ctx, places: places, memory: memory,
		inAir: make(map[flightKey]*flight), known: make(map[flightKey]*list.Element), outcomes: list.New(),
	}
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for f.outcomes.Len() > 0 {
			f.drop()
		}
	})
	return f
}

// do returns the outcome of the call that key stands for, which it makes unless it is
// in the air or remembered. A call that is to be made is first asked for by begin,
// which may refuse it, and waits for its place no longer than patience.
func (f *flights) do(ctx context.Context, key flightKey, patience time.Duration, begin func() error, call func(context.Context) outcome) (any, error) {
	f.mu.Lock()
	f.forgetOld()
	if e := f.known[key]; e != nil {
		defer f.mu.Unlock()
		known := e.Value.(*remembered)
		return known.result, known.err
	}
	this := f.inAir[key]
	if this == nil {
		if err := begin(); err != nil {
			f.mu.Unlock()
			return nil, err
		}
		waiting, giveUp := context.WithCancel(f.ctx)
		this = &flight{giveUp: giveUp, done: make(chan struct{})}
		f.inAir[key] = this
		go f.fly(waiting, key, this, patience, call)
	}
	this.waiting++
	f.mu.Unlock()

	select {
	case <-this.done:
		return this.outcome.result, this.outcome.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if this.waiting--; this.waiting == 0 && !this.sent {
		this.giveUp()
		f.land(key, this) // who comes now gets a flight of its own
	}
	return nil, ctx.Err()
}

// land takes a flight out of the air, unless it has ended already: then the key may be
// of the next one. The caller holds the lock.
func (f *flights) land(key flightKey, this *flight) {
	if f.inAir[key] == this {
		delete(f.inAir, key)
	}
}

// fly takes a flight to its end. waiting ends when nobody waits for it.
func (f *flights) fly(waiting context.Context, key flightKey, this *flight, patience time.Duration, call func(context.Context) outcome) {
	defer this.giveUp()
	leave, err := f.enter(waiting, this, patience)
	var got outcome
	if err != nil {
		got.err = err
	} else {
		got = call(f.ctx)
		leave()
	}
	if f.ctx.Err() != nil {
		got = outcome{err: errClosing}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.land(key, this)
	if got.kept {
		f.remember(key, got)
	}
	this.outcome = got
	close(this.done)
}

// enter waits for a place, and returns how to leave it. When it returns without an
// error somebody still waits for the flight, and it is about to be sent.
func (f *flights) enter(waiting context.Context, this *flight, patience time.Duration) (leave func(), err error) {
	leave = func() {}
	if f.places != nil {
		patient, cancel := context.WithTimeout(waiting, patience)
		defer cancel()
		if err = f.places.Acquire(patient, 1); err == nil {
			leave = func() { f.places.Release(1) }
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case waiting.Err() != nil:
		if err == nil {
			leave()
		}
		return nil, waiting.Err()
	case err != nil:
		return nil, &problem{rule: ruleNoPlace, local: true, hadNoEffect: true}
	}
	this.sent = true
	return leave, nil
}

// remember keeps an outcome. The caller holds the lock.
func (f *flights) remember(key flightKey, got outcome) {
	if got.size > maxRememberedSize {
		return
	}
	for f.outcomes.Len() >= maxRemembered || f.size+got.size > maxRememberedSize {
		f.drop()
	}
	f.known[key] = f.outcomes.PushBack(&remembered{got, key, time.Now().Add(f.memory)})
	f.size += got.size
	if f.outcomes.Len() == 1 {
		f.forgetLater()
	}
}

// forgetOld drops what is remembered for long enough. The caller holds the lock.
func (f *flights) forgetOld() {
	now := time.Now()
	for e := f.outcomes.Front(); e != nil && !now.Before(e.Value.(*remembered).ends); e = f.outcomes.Front() {
		f.drop()
	}
}

// forgetLater has the oldest outcome dropped in time, and then what follows it: they
// hold users' keys. The caller holds the lock.
func (f *flights) forgetLater() {
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(f.outcomes.Front().Value.(*remembered).ends), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.forget != timer {
			return // another one has taken over
		}
		if f.forgetOld(); f.outcomes.Len() > 0 {
			f.forgetLater()
		}
	})
	f.forget = timer
}

// drop drops the oldest outcome. The caller holds the lock.
func (f *flights) drop() {
	oldest := f.outcomes.Remove(f.outcomes.Front()).(*remembered)
	delete(f.known, oldest.key)
	if f.size -= oldest.size; f.outcomes.Len() == 0 {
		f.forget.Stop()
	}
}
