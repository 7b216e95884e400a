package wechat

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

// lateCaller is the context of a request that is slow to notice anything: when it looks
// whether it has ended, d has passed, and it has.
type lateCaller struct {
	context.Context
	d time.Duration
}

func (c lateCaller) Done() <-chan struct{} {
	time.Sleep(c.d)
	ended := make(chan struct{})
	close(ended)
	return ended
}

func (lateCaller) Err() error { return context.Canceled }

// Of two things that it finds done, the end of its flight and its own, a request may
// see the second.
func TestWhoGivesUpLateLeavesTheNextFlightInTheAir(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			places := semaphore.NewWeighted(1)
			require.True(t, places.TryAcquire(1))
			f := newFlights(ctx, places, 0)
			calls := 0
			ask := func(ctx context.Context, patience time.Duration) {
				_, _ = f.do(ctx, digest("key"), patience, func() error { return nil }, func(context.Context) outcome {
					calls++
					return outcome{}
				})
			}
			go ask(lateCaller{ctx, 3 * time.Second}, time.Second)
			time.Sleep(2 * time.Second)
			go ask(ctx, time.Minute) // the first flight has ended without a place
			time.Sleep(2 * time.Second)
			go ask(ctx, time.Minute)
			synctest.Wait()
			places.Release(1)
			synctest.Wait()
			require.Equal(t, 1, calls)
		})
	}
}
