package wake

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// bench is a schedule in a synctest bubble, with a wall clock that a test may set.
type bench struct {
	*Schedule
	busy  sync.WaitGroup
	begin time.Time

	mu    sync.Mutex
	ahead time.Duration            // of the wall clock
	begun map[string]time.Duration // when each job was last called, since begin
	calls int
	atAll map[Key]int // how many are at work, and
	most  map[Key]int // how many were at most
}

func inBubble(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{
			begin: time.Now(), begun: make(map[string]time.Duration), atAll: make(map[Key]int), most: make(map[Key]int),
		}
		b.Schedule = New(b.clock, &b.busy)
		test(t, b)
		b.Stop()
		b.busy.Wait()
	})
}

// clock is the wall clock.
func (b *bench) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Round(0).Add(b.ahead)
}

// setClock sets the wall clock forward.
func (b *bench) setClock(by time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead += by
}

// after is the time by the wall clock at which so much will have passed since the begin.
func (b *bench) after(d time.Duration) time.Time { return b.begin.Round(0).Add(d) }

// job is one whose work takes so long.
func (b *bench) job(name string, key Key, takes time.Duration) *Job {
	return &Job{Key: func() Key { return key }, Work: func() {
		b.enter(name, key)
		time.Sleep(takes)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.atAll[key]--
	}}
}

func (b *bench) enter(name string, key Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun[name] = time.Since(b.begin)
	b.calls++
	b.atAll[key]++
	b.most[key] = max(b.most[key], b.atAll[key])
}

// add adds n jobs that are due now.
func (b *bench) add(n int, name string, key Key, takes time.Duration) {
	for range n {
		b.Set(b.job(name, key, takes), b.clock())
	}
	synctest.Wait()
}

// when tells when each job was last called, since the begin.
func (b *bench) when() map[string]time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.begun)
}

// called tells how often jobs were called.
func (b *bench) called() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

// atOnce tells how many jobs of each key were at work at a time at most.
func (b *bench) atOnce() map[Key]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.most)
}

// at lets time pass until so much has since the begin.
func (b *bench) at(d time.Duration) {
	time.Sleep(d - time.Since(b.begin))
	synctest.Wait()
}

// settled checks that nothing is left of what was done.
func (b *bench) settled(t *testing.T) {
	t.Helper()
	b.Schedule.mu.Lock()
	defer b.Schedule.mu.Unlock()
	require.Empty(t, b.jobs)
	require.Empty(t, b.queues)
}

func TestJobsAreCalledWhenTheyAreDue(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Start()
		jobs := make([]*Job, 6)
		for n := range jobs {
			jobs[n] = b.job(fmt.Sprint(n), Key{}, 0)
			b.Set(jobs[n], b.after(time.Duration(10-n)*time.Minute))
		}
		b.Set(jobs[0], b.after(time.Minute)) // earlier
		b.Set(jobs[4], b.after(time.Hour))   // later
		b.Set(jobs[5], time.Time{})          // never
		b.Set(jobs[5], time.Time{})          // which may be repeated
		b.at(2 * time.Hour)
		require.Equal(t, map[string]time.Duration{
			"0": time.Minute, "3": 7 * time.Minute, "2": 8 * time.Minute, "1": 9 * time.Minute, "4": time.Hour,
		}, b.when())
		require.Equal(t, 5, b.called(), "each was called once")
		b.settled(t)
	})
}

func TestNothingIsCalledBeforeTheStart(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Set(b.job("due", Key{}, time.Second), b.after(0))
		b.Set(b.job("too", Key{}, time.Second), b.after(time.Second))
		b.Set(b.job("later", Key{}, 0), b.after(time.Hour))
		b.at(time.Minute)
		b.setClock(time.Minute)
		b.Sweep()
		synctest.Wait()
		require.Empty(t, b.when())
		n, since := b.Waiting()
		require.Equal(t, 2, n)
		require.True(t, since.Equal(b.begin))
		b.Start()
		synctest.Wait()
		require.Equal(t, map[string]time.Duration{"due": time.Minute, "too": time.Minute}, b.when())
	})
}

// All workers but one are busy, so the others are called one by one.
func TestWhatIsDueFirstComesFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		for range Workers - 1 {
			b.Set(b.job("busy", Key{}, time.Hour), b.after(0))
		}
		for n, name := range []string{"third", "second", "first"} {
			b.Set(b.job(name, Key{}, time.Second), b.after(time.Duration(3-n)*time.Millisecond))
		}
		b.at(time.Minute)
		b.Start()
		b.at(2 * time.Minute)
		require.Equal(t, map[string]time.Duration{
			"busy": time.Minute, "first": time.Minute, "second": time.Minute + time.Second, "third": time.Minute + 2*time.Second,
		}, b.when())
	})
}

// A thousand jobs hang for half a minute each, and one is well.
func TestWhatHangsDelaysNothingElse(t *testing.T) {
	same := func(key Key) func(int) Key { return func(int) Key { return key } }
	for name, c := range map[string]struct {
		hangs func(n int) Key
		most  int // at work at a time
	}{
		"a way":           {same(Key{Way: "hangs"}), Workers},
		"a kind":          {same(Key{Kind: "hangs"}), Workers},
		"slow jobs":       {same(Key{Slow: true}), SlowWorkers},
		"a thousand ways": {func(n int) Key { return Key{Way: fmt.Sprint(n)} }, 1000},
		"a few ways":      {func(n int) Key { return Key{Way: fmt.Sprint(n % 3)} }, 3 * Workers},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.Start()
				for n := range 1000 {
					b.Set(b.job(fmt.Sprint("hangs-", n), c.hangs(n), 30*time.Second), b.after(time.Second))
				}
				b.Set(b.job("well", Key{}, 0), b.after(2*time.Second))
				b.at(10 * time.Second)
				require.Equal(t, 2*time.Second, b.when()["well"])
				waiting, since := b.Waiting()
				require.Equal(t, 1000-c.most, waiting)
				require.True(t, waiting == 0 || since.Equal(b.after(time.Second)))
				b.at(time.Hour)
				require.Len(t, b.when(), 1001, "all get their turn")
				for key, most := range b.atOnce() {
					require.LessOrEqual(t, most, key.workers())
				}
				b.settled(t)
			})
		})
	}
}

// crowded is a queue whose Workers are all at work for half a minute.
var crowded = Key{Way: "crowded"}

func TestAJobThatWaitsForAWorker(t *testing.T) {
	const soon = 5 * time.Second // while it waits
	for name, c := range map[string]struct {
		change func(b *bench, j *Job, key *Key)
		begins time.Duration // zero is never
		since  time.Duration // when it is due, from soon on; zero is that it waits no more
	}{
		"is set again and is called once": {
			func(b *bench, j *Job, _ *Key) {
				for range 100 {
					b.Set(j, b.clock())
				}
			}, 30 * time.Second, 2 * time.Second,
		},
		"is set to never": {func(b *bench, j *Job, _ *Key) { b.Set(j, time.Time{}) }, 0, 0},
		"is set to later": {func(b *bench, j *Job, _ *Key) { b.Set(j, b.after(time.Hour)) }, time.Hour, 0},
		"is set to later, and the queue is still full": {
			func(b *bench, j *Job, _ *Key) { b.Set(j, b.after(8*time.Second)) }, 60 * time.Second, 8 * time.Second,
		},
		"gets another key": {
			func(b *bench, j *Job, key *Key) { key.Kind = "leak response"; b.Set(j, b.clock()) }, soon, 0,
		},
		"gets another key, and a time yet to come": {
			func(b *bench, j *Job, key *Key) { key.Kind = "leak response"; b.Set(j, b.after(8*time.Second)) }, 8 * time.Second, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.Start()
				b.add(Workers, "others", crowded, 30*time.Second)
				key := crowded
				j := b.job("it", Key{}, 0)
				j.Key = func() Key { return key }
				b.at(2 * time.Second)
				b.Set(j, b.clock())
				b.at(3 * time.Second)
				b.add(Workers-1, "others", crowded, 30*time.Second) // behind it
				b.add(1, "the one behind", crowded, 30*time.Second)
				b.at(soon)
				require.NotContains(t, b.when(), "it")
				c.change(b, j, &key)
				b.at(10 * time.Second)
				waiting, since := b.Waiting()
				if others := Workers; c.since == 0 {
					require.Equal(t, others, waiting)
				} else {
					require.Equal(t, others+1, waiting)
					require.Equal(t, min(c.since, 3*time.Second), since.Sub(b.after(0)))
				}
				b.at(2 * time.Hour)
				begun, called := b.when()["it"]
				require.Equal(t, c.begins != 0, called)
				require.Equal(t, c.begins, begun)
				require.Equal(t, 2*Workers+min(1, int(c.begins)), b.called())
				b.settled(t)
			})
		})
	}
}

func TestAJobIsNeverCalledTwiceAtATime(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Start()
		j := b.job("it", Key{}, 10*time.Second)
		b.Set(j, b.clock())
		for n := range 10 {
			b.at(time.Duration(n) * time.Second)
			b.Set(j, b.clock())
		}
		b.at(15 * time.Second)
		require.Equal(t, 10*time.Second, b.when()["it"], "again when it is over")
		b.Set(j, b.after(time.Minute)) // while it is at work
		b.Set(j, b.after(2*time.Minute))
		b.at(time.Hour)
		require.Equal(t, 2*time.Minute, b.when()["it"])
		require.Equal(t, 3, b.called())
		require.Equal(t, 1, b.atOnce()[Key{}])

		b.Set(j, b.clock())
		synctest.Wait()
		b.Set(j, b.clock())
		b.Set(j, time.Time{}) // while it is at work
		b.at(2 * time.Hour)
		require.Equal(t, 4, b.called())
		b.settled(t)
	})
}

func TestAJobMaySetItself(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Start()
		var j *Job
		calls := 0
		j = &Job{Key: func() Key { return Key{} }, Work: func() {
			if calls++; calls < 60 {
				b.Set(j, b.clock().Add(time.Minute))
			}
		}}
		b.Set(j, b.clock())
		b.at(59 * time.Minute)
		require.Equal(t, 60, calls)
		b.settled(t)
	})
}

func TestAStoppedScheduleCallsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Set(b.job("before the start", Key{}, time.Second), b.after(time.Minute))
		b.Start()
		b.Set(b.job("later", Key{}, time.Second), b.after(time.Minute))
		b.add(2*Workers, "due", Key{}, 30*time.Second)
		require.Equal(t, Workers, b.called(), "the others wait for a worker")
		itself := &Job{Key: func() Key { return Key{Kind: "itself"} }}
		itself.Work = func() { time.Sleep(time.Second); b.Set(itself, b.clock()); b.enter("itself", Key{}) }
		b.Set(itself, b.clock())
		synctest.Wait()
		b.Stop()
		b.Stop()
		b.Set(b.job("after the stop", Key{}, 0), b.clock())
		b.Start()
		b.setClock(time.Hour)
		b.Sweep()
		n, _ := b.Waiting()
		require.Zero(t, n)
		b.busy.Wait()
		b.at(time.Hour)
		require.Equal(t, Workers+1, b.called())
		require.Equal(t, time.Second, b.when()["itself"])
	})
}

// A suspended machine is one whose wall clock has moved and whose timers have not.
func TestASweepFindsWhatBecameDueWhileTheMachineWasSuspended(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Start()
		for n, name := range []string{"first", "second"} {
			b.Set(b.job(name, Key{}, 0), b.after(time.Hour+time.Duration(n)*time.Second))
		}
		b.Set(b.job("later", Key{}, 0), b.after(3*time.Hour))
		b.at(time.Minute)
		b.setClock(2 * time.Hour)
		synctest.Wait()
		require.Empty(t, b.when())
		b.Sweep()
		synctest.Wait()
		require.Equal(t, map[string]time.Duration{"first": time.Minute, "second": time.Minute}, b.when())
		b.at(time.Hour)
		require.Equal(t, time.Hour, b.when()["later"], "three hours by the wall clock")
	})
}

func TestAClockThatIsSetBackDelaysAJobButLosesNone(t *testing.T) {
	for _, sweeps := range []bool{false, true} {
		t.Run(fmt.Sprint("sweeps ", sweeps), func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.Start()
				b.add(Workers, "others", crowded, 2*time.Hour)
				b.Set(b.job("it", Key{}, 0), b.after(time.Minute))
				b.Set(b.job("waits", crowded, 0), b.after(time.Minute))
				b.at(30 * time.Second)
				b.setClock(-time.Hour)
				for n := range 59 {
					b.at(time.Duration(n+1) * time.Minute)
					if sweeps {
						b.Sweep()
					}
				}
				require.NotContains(t, b.when(), "it")
				b.at(61 * time.Minute)
				require.Equal(t, 61*time.Minute, b.when()["it"])
				n, since := b.Waiting()
				require.Equal(t, 1, n)
				require.True(t, since.Equal(b.after(time.Minute)))
			})
		})
	}
}

// Whatever is set when: a queue has no more Workers than it may, nothing waits while
// its queue may have one more, and each job is called at its time or late by that.
func TestNothingWaitsWhileThereIsAWorkerForIt(t *testing.T) {
	for seed := range uint64(5) {
		inBubble(t, func(t *testing.T, b *bench) {
			random := rand.New(rand.NewPCG(seed, 0))
			b.Start()
			jobs := make([]*Job, 800)
			for n := range jobs {
				way := []string{"x", "x", "x", "y", fmt.Sprint(random.IntN(50))}[random.IntN(5)]
				takes := time.Duration(1+random.IntN(5000)) * time.Millisecond
				jobs[n] = b.job(fmt.Sprint(n), Key{Way: way, Slow: random.IntN(4) == 0}, takes)
				b.Set(jobs[n], b.after(time.Duration(random.IntN(6000))*time.Millisecond))
			}
			for range 300 {
				time.Sleep(100 * time.Millisecond)
				for range random.IntN(3) {
					b.Set(jobs[random.IntN(len(jobs))], b.clock().Add(time.Duration(random.IntN(6000)-3000)*time.Millisecond))
				}
				synctest.Wait()
				b.Schedule.mu.Lock()
				for key, q := range b.queues {
					require.LessOrEqual(t, q.workers, key.workers())
					require.True(t, q.waiting.Len() == 0 || q.workers == key.workers(), "there is a worker for it")
				}
				for _, j := range jobs {
					require.False(t, j.queue == nil && !j.working && b.due(j.at), "a job that is due was lost")
				}
				b.Schedule.mu.Unlock()
			}
			b.at(time.Hour)
			require.Len(t, b.when(), len(jobs))
			b.settled(t)
		})
	}
}

// idle is n jobs that are due in an hour, in real time.
func idle(tb testing.TB, n int) (*Schedule, []*Job) {
	tb.Helper()
	var busy sync.WaitGroup
	s := New(time.Now, &busy)
	s.Start()
	tb.Cleanup(func() { s.Stop(); busy.Wait() })
	jobs, base := make([]*Job, n), time.Now().Add(time.Hour)
	for i := range jobs {
		jobs[i] = &Job{Key: func() Key { return Key{} }, Work: func() {}}
		s.Set(jobs[i], base.Add(time.Duration(i)*time.Millisecond))
	}
	return s, jobs
}

func TestAnIdleJobCostsNoGoroutineAndLittleMemory(t *testing.T) {
	const n = 10_000
	inUse := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	memory, goroutines := inUse(), runtime.NumGoroutine()
	s, jobs := idle(t, n)
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
	each := (inUse() - memory) / n
	t.Logf("%d bytes a job", each)
	require.Less(t, each, int64(1<<10))
	require.Zero(t, testing.AllocsPerRun(100, s.Sweep), "nothing has moved")
	for _, j := range jobs {
		s.Set(j, time.Time{})
	}
	require.Zero(t, s.Len())
}

func BenchmarkSet(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, jobs := idle(b, n)
			base := time.Now().Add(time.Hour)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Set(jobs[i%n], base.Add(time.Duration(n+i)*time.Millisecond))
			}
		})
	}
}

func BenchmarkSweepWithNothingDue(b *testing.B) {
	s, _ := idle(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Sweep()
	}
}
