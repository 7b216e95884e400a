package wechat

import (
	"container/heap"
	"sync"
	"time"
)

// lane is the kind of work that is due for a sleeper: each has workers of its own,
// so that none keeps the others waiting.
type lane int

const (
	fastLane   lane = iota // what is over in a moment
	slowLane               // what took slowCall or longer the last time, whatever came of it
	revokeLane             // revocations
	ticketLane             // tickets: WeChat may answer for tokens and hang at these
	lanes
)

// slowCall is how long a call takes at least that is slow.
const slowCall = time.Second

// laneLimits says how many workers a lane has at most, and how many of them work for
// one upstream host: whose server is slow must not be able to occupy them all.
var laneLimits = [lanes]struct{ workers, perHost int }{
	fastLane:   {64, 48},
	slowLane:   {32, 24},
	revokeLane: {16, 12},
	ticketLane: {32, 24},
}

// sleeper is what a schedule wakes.
type sleeper interface {
	// place returns its place in the schedule, which is nobody else's to touch.
	place() *place

	// errand returns what kind of work is due for it, and the upstream host that it
	// is done with. It is called with the schedule's lock held, and must not wait.
	errand() (kind lane, host string)
}

// place is a sleeper's place in a schedule.
type place struct {
	at    time.Time
	index int // in the queue, from 1; 0 is not in it
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
		kind, host := t.errand()
		if s.late == nil {
			s.late = make(map[sleeper]time.Time)
		}
		if _, waits := s.late[t]; !waits {
			s.late[t] = t.place().at
		}
		if c := &s.crews[kind]; c.join(t, host, laneLimits[kind].perHost) && c.running < laneLimits[kind].workers {
			c.running++
			s.busy.Go(func() { s.drain(kind) })
		}
	}
	s.arm()
}

// drain works off a lane until nothing in it can be worked on.
func (s *schedule) drain(kind lane) {
	for {
		s.mu.Lock()
		c := &s.crews[kind]
		t, q := c.next(laneLimits[kind].perHost)
		if t == nil {
			c.running = max(0, c.running-1) // stop has set it to zero
			s.mu.Unlock()
			return
		}
		delete(s.late, t)
		s.mu.Unlock()
		s.work(t)
		s.mu.Lock()
		if !s.stopped { // then the crews are gone, and what still waits is left alone
			c.done(q, laneLimits[kind].perHost)
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

// crew is the workers of a lane with what waits for them. The hosts take turns, so
// that one with much to do does not keep the others waiting. A crew is guarded by
// the schedule's lock.
type crew struct {
	running int
	hosts   map[string]*hostQueue
	turns   []*hostQueue // those with something waiting and a worker's place free
}

// hostQueue is what waits for one upstream host.
type hostQueue struct {
	host    string
	waiting []sleeper
	running int
	inTurns bool
}

// join lets t wait for its turn, and reports whether it can be worked on now.
func (c *crew) join(t sleeper, host string, perHost int) bool {
	q := c.hosts[host]
	if q == nil {
		if c.hosts == nil {
			c.hosts = make(map[string]*hostQueue)
		}
		q = &hostQueue{host: host}
		c.hosts[host] = q
	}
	q.waiting = append(q.waiting, t)
	c.queue(q, perHost)
	return q.inTurns
}

// queue puts q in the line of turns if it has something to do and a place for it.
func (c *crew) queue(q *hostQueue, perHost int) {
	if !q.inTurns && len(q.waiting) > 0 && q.running < perHost {
		q.inTurns = true
		c.turns = append(c.turns, q)
	}
}

// next takes what is to be worked on next; nil is nothing. done has to follow.
func (c *crew) next(perHost int) (sleeper, *hostQueue) {
	if len(c.turns) == 0 {
		return nil, nil
	}
	q := c.turns[0]
	c.turns[0] = nil
	c.turns = c.turns[1:]
	t := q.waiting[0]
	q.waiting[0] = nil
	q.waiting = q.waiting[1:]
	q.running++
	q.inTurns = false
	c.queue(q, perHost)
	return t, q
}

// done gives back the place that next took.
func (c *crew) done(q *hostQueue, perHost int) {
	q.running--
	c.queue(q, perHost)
	if q.running == 0 && len(q.waiting) == 0 && c.hosts[q.host] == q {
		delete(c.hosts, q.host)
	}
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
