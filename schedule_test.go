package wechat

import (
	"fmt"
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
	kind lane
	host string
	at   place
}

func (d *dozer) place() *place          { return &d.at }
func (d *dozer) errand() (lane, string) { return d.kind, d.host }

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

func TestNoKindOfWorkAndNoHostDelaysTheOthers(t *testing.T) {
	// A thousand accounts whose call takes half a minute, and one that is well.
	for name, c := range map[string]struct {
		slow dozer
		most int
	}{
		"slow accounts":           {dozer{kind: slowLane}, laneLimits[slowLane].perHost},
		"revocations":             {dozer{kind: revokeLane}, laneLimits[revokeLane].perHost},
		"a host that became slow": {dozer{kind: fastLane, host: "slow.example.com"}, laneLimits[fastLane].perHost},
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
					d := c.slow
					d.name = named(n + 1).name
					s.set(&d, begin.Add(time.Second))
				}
				s.set(named(0), begin.Add(2*time.Second))
				time.Sleep(10 * time.Second)
				waiting, since := s.waiting()
				require.Equal(t, 1000-c.most, waiting)
				require.True(t, begin.Add(time.Second).Equal(since))
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Equal(t, 2*time.Second, done["account-0"])
				require.Len(t, done, 1001, "all get their turn")
				require.Equal(t, c.most, most)
				waiting, _ = s.waiting()
				require.Zero(t, waiting)
				for kind := range s.crews {
					require.Zero(t, s.crews[kind].running)
					require.Empty(t, s.crews[kind].hosts)
				}
			})
		})
	}
}

func TestHostsTakeTurns(t *testing.T) {
	var mu sync.Mutex
	var order []string
	work := func(d *dozer) {
		mu.Lock()
		order = append(order, d.host)
		mu.Unlock()
		time.Sleep(time.Second)
	}
	scheduleBubble(t, work, func(s *schedule) {
		now := wallClock()
		for range 100 {
			s.set(&dozer{kind: revokeLane, host: "a"}, now.Add(time.Second))
		}
		for range 4 {
			s.set(&dozer{kind: revokeLane, host: "b"}, now.Add(time.Second))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, order, laneLimits[revokeLane].workers)
		require.Contains(t, order, "b")
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
