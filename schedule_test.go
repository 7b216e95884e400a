package wechat

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// scheduleBubble runs test on a schedule whose work is recorded and then done
// by work.
func scheduleBubble(t *testing.T, work func(*dozer), test func(s *schedule)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		s := &schedule{}
		s.start(wallClock(), func(t sleeper) { work(t.(*dozer)) })
		test(s)
		s.stop()
		s.busy.Wait()
	})
}

// dozer is a sleeper and nothing else.
type dozer struct {
	name string
	is   errand
	at   place
	took time.Duration // for tests whose work takes that
}

func (d *dozer) place() *place  { return &d.at }
func (d *dozer) errand() errand { return d.is }

func named(n int) *dozer { return &dozer{name: fmt.Sprintf("account-%d", n)} }

func TestAccountsAreWokenInTheirOrder(t *testing.T) {
	var mu sync.Mutex
	var woken []string
	work := func(tr *dozer) {
		mu.Lock()
		defer mu.Unlock()
		woken = append(woken, tr.name)
	}
	scheduleBubble(t, work, func(s *schedule) {
		now := wallClock()
		accounts := make([]*dozer, 6)
		for n := range accounts {
			accounts[n] = named(n)
			s.set(accounts[n], now.Add(time.Duration(10-n)*time.Minute))
		}
		s.set(accounts[0], now.Add(time.Minute)) // moved to the front
		s.set(accounts[5], time.Time{})          // taken out
		s.set(accounts[5], time.Time{})          // which may be repeated
		s.set(accounts[4], now.Add(time.Hour))   // moved to the end
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"account-0", "account-3", "account-2", "account-1", "account-4"}, woken)
		require.Empty(t, s.waking)
	})
}

// settled checks that nothing is left of what the crews were told.
func (s *schedule) settled(t *testing.T) {
	t.Helper()
	waiting, _ := s.waiting()
	require.Zero(t, waiting)
	for kind := range s.crews {
		c := &s.crews[kind]
		require.Zero(t, c.running)
		require.Empty(t, c.hosts)
		if c.top != nil {
			require.Empty(t, c.top.below)
			require.Empty(t, c.top.turns)
			require.Zero(t, c.top.running)
		}
	}
}

func TestNoKindOfWorkAndNoHostDelaysTheOthers(t *testing.T) {
	// A thousand accounts whose call takes half a minute, and one that is well.
	for name, c := range map[string]struct {
		slow func(n int) errand
		well errand
		most int // of the slow ones at a time
	}{
		"slow accounts": {
			func(int) errand { return errand{kind: slowLane} }, errand{}, share(laneWorkers[slowLane]),
		},
		"revocations": {
			func(int) errand { return errand{kind: revokeLane} }, errand{}, share(laneWorkers[revokeLane]),
		},
		"slow revocations": {
			func(int) errand { return errand{kind: slowRevokeLane} }, errand{kind: revokeLane}, share(laneWorkers[slowRevokeLane]),
		},
		"a host that became slow": {
			func(int) errand { return errand{host: "slow.example.com"} }, errand{}, share(laneWorkers[fastLane]),
		},
		"a host that became slow, on many levels": {
			func(n int) errand { return errand{level: fmt.Sprintf("team-%d/", n), host: "slow.example.com"} },
			errand{},
			share(laneWorkers[fastLane]),
		},
		"a level that became slow, with many hosts": {
			func(n int) errand { return errand{level: "team-e/", host: fmt.Sprint(n)} },
			errand{},
			share(laneWorkers[fastLane]),
		},
		"a level that became slow, with many hosts and levels below": {
			func(n int) errand { return errand{level: fmt.Sprintf("team-e/%d/%d/", n%7, n%30), host: fmt.Sprint(n)} },
			errand{level: "team-f/"},
			share(laneWorkers[fastLane]),
		},
		"a level below another": {
			func(n int) errand { return errand{level: "company/team-e/", host: fmt.Sprint(n)} },
			errand{level: "company/team-f/"},
			share(share(laneWorkers[fastLane])),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			done := map[string]time.Duration{}
			running, most := 0, 0
			var begin time.Time
			work := func(d *dozer) {
				if d.name != "account-0" {
					mu.Lock()
					running++
					most = max(most, running)
					mu.Unlock()
					time.Sleep(30 * time.Second)
					mu.Lock()
					running--
					mu.Unlock()
				}
				mu.Lock()
				defer mu.Unlock()
				done[d.name] = time.Since(begin)
			}
			scheduleBubble(t, work, func(s *schedule) {
				begin = wallClock()
				for n := range 1000 {
					d := named(n + 1)
					d.is = c.slow(n)
					s.set(d, begin.Add(time.Second))
				}
				well := named(0)
				well.is = c.well
				s.set(well, begin.Add(2*time.Second))
				time.Sleep(10 * time.Second)
				waiting, since := s.waiting()
				require.Equal(t, 1000-c.most, waiting)
				require.True(t, begin.Add(time.Second).Equal(since))
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Equal(t, 2*time.Second, done["account-0"])
				require.Len(t, done, 1001, "all get their turn")
				require.Equal(t, c.most, most)
				s.settled(t)
			})
		})
	}
}

func TestHostsAndLevelsTakeTurns(t *testing.T) {
	for name, two := range map[string][2]errand{
		"hosts":                       {{host: "a"}, {host: "b"}},
		"levels":                      {{level: "a/", host: "a"}, {level: "b/", host: "a"}},
		"levels below another":        {{level: "x/a/"}, {level: "x/b/"}},
		"a level and the names above": {{level: "x/a/"}, {level: "x/"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &crew{}
			for _, e := range two {
				for range 100 {
					c.join(&dozer{is: e}, e)
				}
			}
			for n := range 20 {
				next, _ := c.next()
				require.Equal(t, two[n%2], next.errand())
			}
		})
	}
	t.Run("a level with many hosts is one", func(t *testing.T) {
		c := &crew{}
		for n := range 100 {
			c.join(&dozer{}, errand{level: "team-e/", host: fmt.Sprint(n)})
		}
		well := &dozer{}
		c.join(well, errand{level: "team-f/"})
		_, _ = c.next()
		next, _ := c.next()
		require.Same(t, well, next)
	})
}

// However work is spread over levels and hosts, no bound is passed, nothing waits while
// there is a place for it, and all of it is done.
func TestNothingWaitsWhileThereIsAPlaceForIt(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		var mu sync.Mutex
		worked := 0
		work := func(d *dozer) {
			mu.Lock()
			worked++
			mu.Unlock()
			time.Sleep(d.took)
		}
		scheduleBubble(t, work, func(s *schedule) {
			const n = 800
			begin := wallClock()
			for range n {
				level := []string{"", "a/", "a/b/", "a/c/", "d/", fmt.Sprintf("e/%d/", random.IntN(20))}[random.IntN(6)]
				host := []string{"x", "x", "x", "y", fmt.Sprint(random.IntN(50))}[random.IntN(5)]
				took := time.Duration(1+random.IntN(5000)) * time.Millisecond
				s.set(&dozer{is: errand{level: level, host: host}, took: took}, begin.Add(time.Duration(random.IntN(6000))*time.Millisecond))
			}
			for range 1000 {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				s.mu.Lock()
				c := &s.crews[fastLane]
				if c.top != nil {
					require.LessOrEqual(t, c.running, laneWorkers[fastLane])
					require.Equal(t, c.running, c.top.running, "a worker is idle")
					for _, h := range c.hosts {
						require.LessOrEqual(t, h.running, h.places)
					}
					c.top.check(t, c.running < laneWorkers[fastLane])
				}
				s.mu.Unlock()
			}
			require.Equal(t, n, worked)
			s.settled(t)
		})
	}
}

// check checks the bounds of q and of all below, and that nothing there waits that has
// a place, as far as free says that there are any above.
func (q *queue) check(t *testing.T, free bool) {
	t.Helper()
	require.LessOrEqual(t, q.running, q.places)
	free = free && q.running < q.places
	if q.host != nil && free && q.host.running < q.host.places {
		require.Empty(t, q.waiting)
	}
	for _, below := range q.below {
		below.check(t, free)
	}
}

func TestWhatEndsMayMakePlaceForTwo(t *testing.T) {
	var mu sync.Mutex
	begun := map[string]time.Duration{}
	begin := time.Now()
	work := func(d *dozer) {
		mu.Lock()
		begun[d.name] = time.Since(begin)
		mu.Unlock()
		if d.name == "first" {
			time.Sleep(5 * time.Second)
		} else {
			time.Sleep(30 * time.Second)
		}
	}
	scheduleBubble(t, work, func(s *schedule) {
		begin = time.Now()
		bound := share(laneWorkers[fastLane])
		add := func(n int, name, level, host string) {
			for range n {
				s.set(&dozer{name: name, is: errand{level: level, host: host}}, wallClock())
			}
			synctest.Wait()
		}
		add(1, "first", "a/", "x")
		add(share(bound)-1, "", "a/", "x")
		add(bound-share(bound), "", "a/", "y") // a has no place left
		add(bound-share(bound), "", "b/", "x") // nor has x
		add(1, "of a", "a/", "z")
		add(1, "with x", "c/", "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 5*time.Second, begun["of a"])
		require.Equal(t, 5*time.Second, begun["with x"])
		time.Sleep(time.Minute)
		synctest.Wait()
		s.settled(t)
	})
}

// A place at a host that was offered to a level is lost to it when the level is filled by
// work for another host first.
func TestALevelThatBecomesFullLeavesTheHostsPlaceToAnother(t *testing.T) {
	var mu sync.Mutex
	begun := map[string]time.Duration{}
	begin := time.Now()
	work := func(d *dozer) {
		mu.Lock()
		begun[d.name] = time.Since(begin)
		mu.Unlock()
		time.Sleep(d.took)
	}
	scheduleBubble(t, work, func(s *schedule) {
		begin = time.Now()
		add := func(n int, name, level, host string, took time.Duration) {
			for range n {
				s.set(&dozer{name: name, is: errand{level: level, host: host}, took: took}, wallClock())
			}
			synctest.Wait()
		}
		workers, atHost := laneWorkers[fastLane], share(laneWorkers[fastLane])
		inner := share(share(workers)) // places on the level a/b
		const long = 30 * time.Second
		others := workers - atHost // of them one is at z, the rest at y
		add(inner-others, "", "a/b/", "x", long)
		add(others-1, "", "a/b/", "y", long) // one place left there
		add(1, "", "c/", "x", 5*time.Second)
		add(atHost-(inner-others)-1, "", "c/", "x", long) // x has no place left
		add(1, "of x", "a/b/", "x", long)
		add(1, "elsewhere", "d/", "x", long)
		add(1, "", "e/", "z", 6*time.Second) // no worker is left
		add(1, "of y", "a/b/", "y", long)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 5*time.Second, begun["of y"])
		require.Equal(t, 6*time.Second, begun["elsewhere"])
		time.Sleep(time.Minute)
		synctest.Wait()
		s.settled(t)
	})
}

func TestWhoIsDueAgainWaitsOnce(t *testing.T) {
	worked := map[string]int{}
	var mu sync.Mutex
	work := func(d *dozer) {
		time.Sleep(30 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		worked[d.name]++
	}
	scheduleBubble(t, work, func(s *schedule) {
		var last *dozer
		for n := range share(laneWorkers[fastLane]) + 1 {
			last = named(n)
			s.set(last, wallClock())
			synctest.Wait()
		}
		for range 100 { // while it waits
			s.set(last, wallClock())
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 1, worked[last.name])
		s.settled(t)
	})
}

func TestAStoppedScheduleWakesNobody(t *testing.T) {
	woken := 0
	scheduleBubble(t, func(*dozer) { woken++ }, func(s *schedule) {
		s.set(named(1), wallClock().Add(time.Minute))
		s.stop()
		s.set(named(2), wallClock().Add(time.Minute))
		s.fire()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, woken)
	})
}

func TestNothingIsWokenBeforeTheHoldOffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &schedule{}
		woken := make(chan time.Time, 2)
		begin := wallClock()
		s.set(named(1), begin) // before the start
		s.start(begin.Add(2*time.Second), func(sleeper) { woken <- wallClock() })
		s.set(named(2), begin)
		s.fire() // Vault's tick
		time.Sleep(time.Minute)
		synctest.Wait()
		for range cap(woken) {
			require.Equal(t, 2*time.Second, (<-woken).Sub(begin))
		}
		s.stop()
		s.busy.Wait()
	})
}

func BenchmarkTickWithNothingDue(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := &schedule{}
			s.start(wallClock(), func(sleeper) {})
			defer s.stop()
			for i := range n {
				s.set(named(i), wallClock().Add(time.Hour+time.Duration(i)*time.Millisecond))
			}
			b.ReportAllocs()
			for b.Loop() {
				s.fire()
			}
		})
	}
}
