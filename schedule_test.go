package wechat

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

// scheduleBubble runs test on a schedule whose work is recorded and then done
// by work.
func scheduleBubble(t *testing.T, failing func(*tracked) bool, work func(*tracked), test func(s *schedule)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		s := newSchedule(failing)
		s.start(wallClock(), work)
		test(s)
		s.stop()
		s.busy.Wait()
	})
}

func named(n int) *tracked {
	return &tracked{name: fmt.Sprintf("account-%d", n), lock: semaphore.NewWeighted(1)}
}

func never(*tracked) bool { return false }

func TestAccountsAreWokenInTheirOrder(t *testing.T) {
	var mu sync.Mutex
	var woken []string
	work := func(tr *tracked) {
		mu.Lock()
		defer mu.Unlock()
		woken = append(woken, tr.name)
	}
	scheduleBubble(t, never, work, func(s *schedule) {
		now := wallClock()
		accounts := make([]*tracked, 6)
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

func TestFailingAccountsDoNotDelayTheOthers(t *testing.T) {
	// A thousand accounts whose call takes half a minute, and one that is well.
	var mu sync.Mutex
	done := map[string]time.Duration{}
	running, most := 0, 0
	var begin time.Time
	failing := func(tr *tracked) bool { return tr.name != "account-0" }
	work := func(tr *tracked) {
		if failing(tr) {
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
		done[tr.name] = time.Since(begin)
	}
	scheduleBubble(t, failing, work, func(s *schedule) {
		begin = wallClock()
		for n := range 1000 {
			s.set(named(n+1), begin.Add(time.Second))
		}
		s.set(named(0), begin.Add(2*time.Second))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 2*time.Second, done["account-0"])
		require.Len(t, done, 1001, "all get their turn")
		require.Equal(t, failingLane, most)
	})
}

func TestAStoppedScheduleWakesNobody(t *testing.T) {
	woken := 0
	scheduleBubble(t, never, func(*tracked) { woken++ }, func(s *schedule) {
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
		s := newSchedule(never)
		woken := make(chan time.Time, 2)
		begin := wallClock()
		s.set(named(1), begin) // before the start
		s.start(begin.Add(2*time.Second), func(*tracked) { woken <- wallClock() })
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
			s := newSchedule(never)
			s.start(wallClock(), func(*tracked) {})
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
