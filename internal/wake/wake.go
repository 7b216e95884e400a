// Package wake calls work when it is due, and keeps what hangs from delaying the rest by
// sharing nothing: work of one kind, speed and way has a queue and workers of its own,
// which exist only while there is work. A host that hangs fills its own queue, however
// many accounts call it. What was slow the last time waits only for others that were.
//
// A job that waits for its time costs a timer of the runtime and no goroutine. A job
// that is due has at most one worker: it waits in one queue, once, or is at work. So the
// workers of a queue are bounded by a constant, and all workers by the number of jobs:
// ten thousand accounts that hang on as many hosts are ten thousand goroutines, with a
// connection each, for as long as one call may last. A lower bound would have to be
// shared, and those who fill it would delay the others.
package wake

import (
	"container/list"
	"maps"
	"slices"
	"sync"
	"time"
)

// How many jobs of one queue may be at work at a time. Slow ones do little but wait, so
// there may be more of them.
const (
	Workers     = 64
	SlowWorkers = 256
)

// Key names a queue: jobs wait only for those of the same key.
type Key struct {
	Kind string
	Slow bool   // the last call took long
	Way  string // where its calls go
}

func (k Key) workers() int {
	if k.Slow {
		return SlowWorkers
	}
	return Workers
}

// Job is work that a schedule calls, never twice at a time. All but Key and Work
// belongs to the schedule.
type Job struct {
	// Key is asked when the job is due, under the lock of the schedule: it must not wait.
	Key  func() Key
	Work func()

	at      time.Time // when it is due, by the wall clock; zero is never
	timer   *time.Timer
	queue   *queue        // in which it waits for a worker, nil if it does not
	element *list.Element // its place there
	working bool
}

// queue holds the jobs of one key that are due. It exists while it has a worker.
type queue struct {
	key     Key
	waiting list.List // of *Job
	workers int
}

// Schedule calls jobs when they are due.
type Schedule struct {
	now   func() time.Time
	busy  *sync.WaitGroup
	begin time.Time // any moment, to measure drift from

	mu      sync.Mutex // guards what follows, and every job's fields
	started bool
	stopped bool
	drift   time.Duration // when the timers were set last
	jobs    map[*Job]struct{}
	queues  map[Key]*queue
}

// New returns a schedule that calls nothing before Start. Times are read from now, the
// wall clock; busy counts the workers.
func New(now func() time.Time, busy *sync.WaitGroup) *Schedule {
	return &Schedule{
		now: now, busy: busy, begin: time.Now(),
		jobs: make(map[*Job]struct{}), queues: make(map[Key]*queue),
	}
}

// Start begins to call jobs. After Stop it does nothing.
func (s *Schedule) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
	s.placeAll()
}

// Stop ends the schedule for good. It does not wait for jobs that are at work, which
// may still call Set.
func (s *Schedule) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for j := range s.jobs {
		if j.timer != nil {
			j.timer.Stop()
		}
	}
	s.jobs, s.queues = nil, nil
}

// Set has j called at the given time, never if that is zero. The time that was set
// before holds no more. A job that waits for a worker, and is still due, keeps its
// place, unless it has another key by now. A job that is at work is called again after.
func (s *Schedule) Set(j *Job, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if j.queue != nil && s.due(at) {
		at = j.at // since then it waits
	}
	if j.at = at; at.IsZero() {
		delete(s.jobs, j)
	} else {
		s.jobs[j] = struct{}{}
	}
	s.place(j)
}

// Sweep sets the timers anew if the wall clock has moved against the steady one, by
// which timers run: while the machine was suspended, or when the clock was set. It costs
// nothing otherwise, and is to be called once a minute.
func (s *Schedule) Sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (s.driftNow() - s.drift).Abs() >= time.Second {
		s.placeAll()
	}
}

// Len returns how many jobs have a time.
func (s *Schedule) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs)
}

// Waiting returns how many jobs are due and not yet at work, and since when the first of
// them is due.
func (s *Schedule) Waiting() (n int, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for j := range s.jobs {
		if !s.due(j.at) {
			continue
		}
		if n++; since.IsZero() || j.at.Before(since) {
			since = j.at
		}
	}
	return n, since
}

// driftNow is how far the wall clock is ahead of the steady one.
func (s *Schedule) driftNow() time.Duration {
	return s.now().Sub(s.begin.Round(0)) - time.Since(s.begin)
}

// due reports whether a time has come. The wall clock alone tells: a timer may fire
// before the clock shows its time.
func (s *Schedule) due(at time.Time) bool { return !at.IsZero() && !at.After(s.now()) }

// placeAll places all jobs, the one that is due first before the others. The caller
// holds mu, and so it does for all that follows.
func (s *Schedule) placeAll() {
	s.drift = s.driftNow()
	for _, j := range slices.SortedFunc(maps.Keys(s.jobs), func(a, b *Job) int { return a.at.Compare(b.at) }) {
		s.place(j)
	}
}

// place puts j where its time demands: into its queue, behind a timer, or nowhere. It
// may be called at any time, so a timer that fires late or too early does no harm.
// Start, and the end of its work, make up for what is left undone here.
func (s *Schedule) place(j *Job) {
	if !s.started || s.stopped || j.working {
		return
	}
	if j.timer != nil {
		j.timer.Stop()
	}
	if s.due(j.at) {
		s.enqueue(j)
		return
	}
	s.leave(j)
	if j.at.IsZero() {
		return
	}
	wait := j.at.Sub(s.now())
	if j.timer != nil {
		j.timer.Reset(wait)
		return
	}
	j.timer = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.place(j)
	})
}

// enqueue puts j into the queue of its key, with a worker more if there may be one.
func (s *Schedule) enqueue(j *Job) {
	key := j.Key()
	if j.queue != nil && j.queue.key == key {
		return
	}
	s.leave(j)
	q := s.queues[key]
	if q == nil {
		q = &queue{key: key}
		s.queues[key] = q
	}
	j.queue, j.element = q, q.waiting.PushBack(j)
	if q.workers < key.workers() {
		q.workers++
		s.busy.Go(func() { s.drain(q) })
	}
}

// leave takes j out of the queue that it waits in.
func (s *Schedule) leave(j *Job) {
	if j.queue != nil {
		j.queue.waiting.Remove(j.element)
		j.queue, j.element = nil, nil
	}
}

// drain works off a queue. It takes mu, and holds it but for the work.
func (s *Schedule) drain(q *queue) {
	s.mu.Lock()
	for !s.stopped && q.waiting.Len() > 0 {
		j := q.waiting.Front().Value.(*Job)
		s.leave(j)
		delete(s.jobs, j)
		j.at, j.working = time.Time{}, true
		s.mu.Unlock()
		j.Work()
		s.mu.Lock()
		j.working = false
		s.place(j)
	}
	if q.workers--; q.workers == 0 {
		delete(s.queues, q.key)
	}
	s.mu.Unlock()
}
