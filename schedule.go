package wechat

import (
	"container/heap"
	"strings"
	"sync"
	"time"
)

// lane is the kind of work that is due for a sleeper: each has workers of its own,
// so that none keeps the others waiting.
type lane int

const (
	fastLane       lane = iota // what is over in a moment
	slowLane                   // what took slowCall or longer the last time, whatever came of it
	revokeLane                 // revocations
	slowRevokeLane             // those of accounts that took slowCall or longer the last time
	ticketLane                 // tickets: WeChat may answer for tokens and hang at these
	lanes
)

// slowCall is how long a call takes at least that is slow.
const slowCall = time.Second

// laneWorkers is how many workers a lane has at most. Where calls are slow they do
// little but wait, and there are more of them.
var laneWorkers = [lanes]int{fastLane: 64, slowLane: 256, revokeLane: 64, slowRevokeLane: 256, ticketLane: 128}

// share is how many of so many workers at most work for one upstream host, for the
// accounts of one level of names and all below it, and of these for one level further
// down: whoever is slow, on however many hosts, must not be able to occupy them all.
func share(workers int) int { return max(1, workers*3/4) }

// errand is what is due for a sleeper.
type errand struct {
	kind  lane
	level string // of names, as levelOf gives it
	host  string // the upstream that it is done with
}

// sleeper is what a schedule wakes.
type sleeper interface {
	// place returns its place in the schedule, which is nobody else's to touch.
	place() *place

	// errand returns what is due for it. It is called with the schedule's lock held,
	// and must not wait.
	errand() errand
}

// place is a sleeper's place in a schedule.
type place struct {
	at    time.Time
	index int         // in the queue, from 1; 0 is not in it
	waits [lanes]bool // for a worker of these
}

// schedule wakes sleepers when they are due. It costs one timer while nothing is:
// however many there are, it looks only at the next one.
type schedule struct {
	work func(sleeper) // set by start, called without mu

	mu      sync.Mutex // guards all below and every place
	waking  wakeQueue
	timer   *time.Timer // nil until start and after stop
	stopped bool        // for good: whatever still comes is ignored
	holdOff time.Time   // nothing is woken before; not by the wall clock, which may be set
	crews   [lanes]crew
	late    map[sleeper]time.Time // those that wait for a worker, with when they were due
	busy    sync.WaitGroup        // what runs
}

// start has work called for every sleeper that is due, but not before holdOff.
func (s *schedule) start(holdOff time.Time, work func(sleeper)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.work, s.holdOff = work, holdOff
	s.timer = time.AfterFunc(time.Until(holdOff), s.fire)
}

// stop ends it for good. What runs is not waited for, and may still call set.
func (s *schedule) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.waking, s.crews, s.late = nil, [lanes]crew{}, nil
}

// set has t woken at the given time, or never if that is zero.
func (s *schedule) set(t sleeper, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	p := t.place()
	switch queued := p.index != 0; {
	case at.IsZero() && queued:
		heap.Remove(&s.waking, p.index-1)
	case at.IsZero():
	case queued:
		p.at = at
		heap.Fix(&s.waking, p.index-1)
	default:
		p.at = at
		heap.Push(&s.waking, t)
	}
	if p.index == 1 {
		s.arm()
	}
}

// arm sets the timer to the next sleeper's time. The caller holds mu.
func (s *schedule) arm() {
	if s.timer == nil || len(s.waking) == 0 {
		return
	}
	s.timer.Reset(max(s.waking[0].place().at.Sub(wallClock()), time.Until(s.holdOff)))
}

// fire hands every sleeper that is due to its crew. The timer calls it, and Vault's
// tick does: a timer stands still while the machine is suspended.
func (s *schedule) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil || time.Now().Before(s.holdOff) {
		return
	}
	now := wallClock()
	for len(s.waking) > 0 && !s.waking[0].place().at.After(now) {
		t := heap.Pop(&s.waking).(sleeper)
		e := t.errand()
		if s.late == nil {
			s.late = make(map[sleeper]time.Time)
		}
		if _, waits := s.late[t]; !waits {
			s.late[t] = t.place().at
		}
		if p := t.place(); !p.waits[e.kind] {
			p.waits[e.kind] = true
			s.crews[e.kind].join(t, e)
		}
		s.hire(e.kind)
	}
	s.arm()
}

// hire adds a worker to a lane if there is work for one. The caller holds mu.
func (s *schedule) hire(kind lane) {
	if c := &s.crews[kind]; c.top != nil && len(c.top.turns) > 0 && c.running < laneWorkers[kind] {
		c.running++
		s.busy.Go(func() { s.drain(kind) })
	}
}

// drain works off a lane until nothing in it can be worked on.
func (s *schedule) drain(kind lane) {
	for {
		s.mu.Lock()
		c := &s.crews[kind]
		t, q := c.next()
		if t == nil {
			c.reoffer()
			t, q = c.next()
		}
		if t == nil {
			c.running = max(0, c.running-1) // stop has set it to zero
			s.mu.Unlock()
			return
		}
		t.place().waits[kind] = false
		delete(s.late, t)
		s.hire(kind) // a place that became free on a level and with a host may do for two
		s.mu.Unlock()
		s.work(t)
		s.mu.Lock()
		if !s.stopped { // then the crews are gone, and what still waits is left alone
			c.done(q)
		}
		s.mu.Unlock()
	}
}

// waiting returns how many sleepers are due and wait for a worker, and since when the
// one that was due first does.
func (s *schedule) waiting() (n int, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.late {
		if n++; since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return n, since
}

// crew is the workers of a lane with what waits for them, by levels of names and, on
// each level, by hosts. All that is on a level takes turns, so that one with much to do
// does not keep the others waiting, and has a share of the places at most. A crew is
// guarded by the schedule's lock.
type crew struct {
	running int                  // workers
	top     *queue               // nil until something is due
	hosts   map[string]*upstream // those of all queues
}

// queue is a level of names, or what waits there for one host.
type queue struct {
	key    string
	parent *queue // nil at the top
	below  map[string]*queue

	places  int      // how much of what is here may run at a time
	running int      // how much does
	turns   []*queue // those below that have something to do and a place for it
	queued  bool     // it is among its parent's turns, or in the line of its host

	host    *upstream // nil for a level
	waiting []sleeper
}

// upstream is a host, with the places that all levels share there.
type upstream struct {
	name            string
	queues          int      // for this host
	places, running int      // as those of a queue
	line            []*queue // those that wait for a place
}

// join lets t wait for its turn.
func (c *crew) join(t sleeper, e errand) {
	if c.top == nil {
		c.top, c.hosts = &queue{places: laneWorkers[e.kind]}, make(map[string]*upstream)
	}
	q := c.top
	for segment := range strings.FieldsFuncSeq(e.level, func(r rune) bool { return r == '/' }) {
		q = q.child(segment)
	}
	q = q.child("/" + e.host) // no level's name looks like this
	if q.host == nil {
		h := c.hosts[e.host]
		if h == nil {
			h = &upstream{name: e.host, places: share(c.top.places)}
			c.hosts[e.host] = h
		}
		h.queues++
		q.host = h
	}
	q.waiting = append(q.waiting, t)
	q.offer()
}

// child returns the queue of this key below q, where it puts it if need be.
func (q *queue) child(key string) *queue {
	below := q.below[key]
	if below == nil {
		if q.below == nil {
			q.below = make(map[string]*queue)
		}
		below = &queue{key: key, parent: q, places: share(q.places)}
		q.below[key] = below
	}
	return below
}

// offer puts q among its parent's turns if it has something to do and a place for it.
func (q *queue) offer() {
	if q.parent == nil || q.queued || q.running >= q.places || len(q.turns) == 0 && len(q.waiting) == 0 {
		return
	}
	q.queued = true
	q.parent.turns = append(q.parent.turns, q)
	q.parent.offer()
}

// next takes what is to be worked on next, with where it waited; nil is nothing. done
// has to follow.
func (c *crew) next() (sleeper, *queue) {
	if c.top == nil {
		return nil, nil
	}
	return c.top.take()
}

// reoffer gives the hosts' places that were offered to a level which became full before it
// took them to what waits elsewhere. It is for a worker that finds nothing else to do.
func (c *crew) reoffer() {
	for _, h := range c.hosts {
		if h.running < h.places {
			h.offer()
		}
	}
}

// take is crew.next for what waits on one level, or there for one host.
func (q *queue) take() (t sleeper, from *queue) {
	if q.host != nil {
		t, from = popFirst(&q.waiting), q
		q.host.running++
	}
	for from == nil && len(q.turns) > 0 {
		next := popFirst(&q.turns)
		if h := next.host; h != nil && h.running >= h.places {
			h.line = append(h.line, next)
			continue
		}
		t, from = next.take()
		next.queued = false
		next.offer() // behind the others
	}
	if from != nil {
		q.running++
	}
	return t, from
}

// offer gives a place at the host to the first in its line that has one on its levels.
// One that has none there waits for that, and not for the host.
func (h *upstream) offer() {
	for found := false; !found && len(h.line) > 0; {
		first := popFirst(&h.line)
		first.queued = false
		first.offer()
		found = first.hasPlace()
	}
}

// done gives back the places that next took.
func (c *crew) done(q *queue) {
	h := q.host
	h.running--
	for at := q; at != nil; at = at.parent {
		at.running--
	}
	for at := q.parent; at != nil; at = at.parent {
		at.offer()
	}
	if !q.queued && len(q.waiting) > 0 {
		q.queued = true
		h.line = append(h.line, q)
	}
	h.offer()
	c.forget(q)
}

// hasPlace reports whether what waits here has a place on all levels.
func (q *queue) hasPlace() bool {
	for at := q; at != nil; at = at.parent {
		if at.running >= at.places {
			return false
		}
	}
	return true
}

// forget drops q, and the levels above it, if nothing is left there.
func (c *crew) forget(q *queue) {
	for q.parent != nil && q.running == 0 && len(q.waiting) == 0 && len(q.below) == 0 {
		delete(q.parent.below, q.key)
		if q.host != nil {
			if q.host.queues--; q.host.queues == 0 {
				delete(c.hosts, q.host.name)
			}
		}
		q = q.parent
	}
}

// popFirst takes the first element out of a list that is not empty.
func popFirst[T any](list *[]T) T {
	var none T
	first := (*list)[0]
	(*list)[0] = none // for the garbage collector
	*list = (*list)[1:]
	return first
}

// wakeQueue is a heap of sleepers, the next one to wake first.
type wakeQueue []sleeper

func (q wakeQueue) Len() int           { return len(q) }
func (q wakeQueue) Less(i, j int) bool { return q[i].place().at.Before(q[j].place().at) }

func (q wakeQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place().index, q[j].place().index = i+1, j+1
}

// Push is for container/heap.
func (q *wakeQueue) Push(x any) {
	t := x.(sleeper)
	*q = append(*q, t)
	t.place().index = len(*q)
}

// Pop is for container/heap.
func (q *wakeQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	t.place().index = 0
	return t
}
