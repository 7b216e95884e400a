package wechat

import (
	"container/heap"
	"sync"
	"time"
)

const (
	// healthyLane is how many accounts the background works on at a time.
	healthyLane = 64

	// failingLane is the same for accounts whose last attempt failed after
	// slowFailure or more: they may wait as long each, and must not keep the others
	// waiting.
	failingLane = 32
	slowFailure = time.Second
)

// schedule wakes accounts when they are due. It costs one timer while nothing
// is: however many accounts there are, it looks only at the next one.
type schedule struct {
	work    func(*tracked)      // set by start, called without mu
	failing func(*tracked) bool // chooses the lane

	mu      sync.Mutex // guards all below and every tracked.slot
	waking  wakeQueue
	timer   *time.Timer // nil until start and after stop
	stopped bool        // for good: whatever still comes is ignored
	holdOff time.Time   // nothing is woken before; not by the wall clock, which may be set
	healthy lane
	ailing  lane
	busy    sync.WaitGroup // what runs, the loading of the accounts included
}

// slot is an account's place in the schedule.
type slot struct {
	at    time.Time
	index int // in the queue, from 1; 0 is not in it
}

// lane works off accounts in order, a limited number at a time. Its workers
// end when nothing waits.
type lane struct {
	limit   int
	running int
	waiting []*tracked
}

func newSchedule(failing func(*tracked) bool) *schedule {
	return &schedule{failing: failing, healthy: lane{limit: healthyLane}, ailing: lane{limit: failingLane}}
}

// start has work called for every account that is due, but not before holdOff.
func (s *schedule) start(holdOff time.Time, work func(*tracked)) {
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
	s.waking, s.healthy.waiting, s.ailing.waiting = nil, nil, nil
}

// set has the account woken at the given time, or never if that is zero.
func (s *schedule) set(t *tracked, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	switch queued := t.slot.index != 0; {
	case at.IsZero() && queued:
		heap.Remove(&s.waking, t.slot.index-1)
	case at.IsZero():
	case queued:
		t.slot.at = at
		heap.Fix(&s.waking, t.slot.index-1)
	default:
		t.slot.at = at
		heap.Push(&s.waking, t)
	}
	if t.slot.index == 1 {
		s.arm()
	}
}

// arm sets the timer to the next account's time. The caller holds mu.
func (s *schedule) arm() {
	if s.timer == nil || len(s.waking) == 0 {
		return
	}
	s.timer.Reset(max(time.Until(s.waking[0].slot.at), time.Until(s.holdOff)))
}

// fire puts every account that is due into its lane. The timer calls it, and
// Vault's tick does: a timer stands still while the machine is suspended.
func (s *schedule) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	if s.timer == nil || time.Now().Before(s.holdOff) {
		return
	}
	for len(s.waking) > 0 && !s.waking[0].slot.at.After(now) {
		t := heap.Pop(&s.waking).(*tracked)
		if s.failing(t) {
			s.join(&s.ailing, t)
		} else {
			s.join(&s.healthy, t)
		}
	}
	s.arm()
}

// join lets t wait in the lane for its turn. The caller holds mu.
func (s *schedule) join(l *lane, t *tracked) {
	l.waiting = append(l.waiting, t)
	if l.running < l.limit {
		l.running++
		s.busy.Go(func() { s.drain(l) })
	}
}

// drain works off a lane until nothing waits in it.
func (s *schedule) drain(l *lane) {
	for {
		s.mu.Lock()
		if len(l.waiting) == 0 {
			l.running--
			s.mu.Unlock()
			return
		}
		t := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		s.mu.Unlock()
		s.work(t)
	}
}

// wakeQueue is a heap of accounts, the next one to wake first.
type wakeQueue []*tracked

func (q wakeQueue) Len() int           { return len(q) }
func (q wakeQueue) Less(i, j int) bool { return q[i].slot.at.Before(q[j].slot.at) }

func (q wakeQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].slot.index, q[j].slot.index = i+1, j+1
}

// Push is for container/heap.
func (q *wakeQueue) Push(x any) {
	t := x.(*tracked)
	*q = append(*q, t)
	t.slot.index = len(*q)
}

// Pop is for container/heap.
func (q *wakeQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	t.slot.index = 0
	return t
}
