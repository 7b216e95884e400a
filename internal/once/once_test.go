package once

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const memory = 10 * time.Second

// counted is a Group whose calls are counted. A call takes a second, and its answer is
// remembered unless forget is set.
type counted struct {
	*Group[string, int]
	calls  int
	forget bool
	err    error
}

func (c *counted) ask(ctx context.Context, key string) (int, error) {
	return c.Do(ctx, key, func(ctx context.Context) (int, bool, error) {
		c.calls++
		n := c.calls
		select {
		case <-time.After(time.Second):
			return n, !c.forget, c.err
		case <-ctx.Done():
			return 0, true, ctx.Err()
		}
	})
}

func (c *counted) held() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.Group.calls)
}

// group runs the test in fake time with a Group that remembers at most so many answers.
func group(t *testing.T, most int, test func(t *testing.T, c *counted, end context.CancelCauseFunc)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancelCause(t.Context())
		defer end(nil)
		test(t, &counted{Group: New[string, int](ctx, memory, most)}, end)
	})
}

func TestOneCallAnswersAllWhoAskTheSame(t *testing.T) {
	group(t, 100, func(t *testing.T, c *counted, _ context.CancelCauseFunc) {
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				got, err := c.ask(t.Context(), "same")
				require.NoError(t, err)
				require.Equal(t, 1, got)
			})
		}
		all.Wait()
		got, err := c.ask(t.Context(), "other")
		require.NoError(t, err)
		require.Equal(t, 2, got)
	})
}

func TestAnAnswerIsRememberedForSoLong(t *testing.T) {
	for name, failure := range map[string]error{"a good one": nil, "a bad one": errors.New("refused")} {
		t.Run(name, func(t *testing.T) {
			group(t, 100, func(t *testing.T, c *counted, _ context.CancelCauseFunc) {
				c.err = failure
				_, err := c.ask(t.Context(), "key")
				require.Equal(t, failure, err)
				time.Sleep(memory - 1)
				got, err := c.ask(t.Context(), "key")
				require.Equal(t, failure, err)
				require.Equal(t, 1, got)
				time.Sleep(2 * time.Nanosecond)
				_, _ = c.ask(t.Context(), "key")
				require.Equal(t, 2, c.calls)
				time.Sleep(memory)
				synctest.Wait()
				require.Zero(t, c.held(), "also if no request comes any more")
			})
		})
	}
}

func TestAnAnswerThatIsNotKeptIsForgotten(t *testing.T) {
	group(t, 100, func(t *testing.T, c *counted, _ context.CancelCauseFunc) {
		c.forget = true
		for n := range 3 {
			got, err := c.ask(t.Context(), "key")
			require.NoError(t, err)
			require.Equal(t, n+1, got)
		}
		require.Zero(t, c.held())
	})
}

func TestOnlySoManyAnswersAreRemembered(t *testing.T) {
	group(t, 3, func(t *testing.T, c *counted, _ context.CancelCauseFunc) {
		for n := range 4 {
			_, err := c.ask(t.Context(), strconv.Itoa(n))
			require.NoError(t, err)
		}
		require.Equal(t, 3, c.held())
		_, _ = c.ask(t.Context(), "0")
		require.Equal(t, 4, c.calls, "what was remembered still is")
		time.Sleep(memory)
		_, _ = c.ask(t.Context(), "3")
		_, _ = c.ask(t.Context(), "3")
		require.Equal(t, 5, c.calls, "there is room again")
	})
}

func TestACallOutlivesTheRequestThatCausedIt(t *testing.T) {
	group(t, 100, func(t *testing.T, c *counted, _ context.CancelCauseFunc) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := c.ask(ctx, "key")
		require.Equal(t, context.DeadlineExceeded, err)
		got, err := c.ask(t.Context(), "key")
		require.NoError(t, err)
		require.Equal(t, 1, got)
		require.Equal(t, 1, c.calls)
	})
}

func TestTheEndOfTheGroupEndsItsCalls(t *testing.T) {
	closing := errors.New("closing")
	group(t, 100, func(t *testing.T, c *counted, end context.CancelCauseFunc) {
		var waits sync.WaitGroup
		waits.Go(func() {
			_, err := c.ask(context.Background(), "key")
			require.Equal(t, closing, err)
		})
		synctest.Wait()
		end(closing)
		waits.Wait()
		_, err := c.ask(context.Background(), "later")
		require.Equal(t, closing, err)
		require.Zero(t, c.held())
	})
}
