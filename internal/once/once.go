// Package once makes one call for all requests that ask the same, and remembers its
// answer for a while.
package once

import (
	"context"
	"sync"
	"time"
)

// Group makes calls under keys of type K whose answers are of type V. A call ends with
// the Group's context, not with the request that caused it: once it is on its way, the
// other side may act on it.
type Group[K comparable, V any] struct {
	ctx      context.Context
	remember time.Duration
	most     int

	mu    sync.Mutex
	calls map[K]*call[V] // in the air, or remembered
	size  int            // of all answers that are remembered
}

type call[V any] struct {
	done  chan struct{} // closed when value and err are set
	value V
	err   error
	ends  time.Time // until when it is remembered; zero while it is in the air
}

// New returns a Group that remembers answers for the given time, and of them as many as
// have the size most together.
func New[K comparable, V any](ctx context.Context, remember time.Duration, most int) *Group[K, V] {
	return &Group[K, V]{ctx: ctx, remember: remember, most: most, calls: make(map[K]*call[V])}
}

// Do returns the answer for key: the one that is remembered or on its way, or else that
// of f. The size of f's answer, in whatever unit, says what it takes to remember it;
// one of size 0, or for which there is no room, goes only to the requests that wait.
func (g *Group[K, V]) Do(ctx context.Context, key K, f func(context.Context) (answer V, size int, err error)) (V, error) {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil || !c.ends.IsZero() && !time.Now().Before(c.ends) {
		c = &call[V]{done: make(chan struct{})}
		g.calls[key] = c
		go g.run(key, c, f)
	}
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

func (g *Group[K, V]) run(key K, c *call[V], f func(context.Context) (V, int, error)) {
	value, size, err := f(g.ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	defer close(c.done)
	c.value, c.err = value, err
	if g.ctx.Err() != nil {
		c.err = context.Cause(g.ctx)
	}
	if g.ctx.Err() != nil || size == 0 || g.size+size > g.most {
		g.drop(key, c)
		return
	}
	g.size += size
	c.ends = time.Now().Add(g.remember)
	time.AfterFunc(g.remember, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.size -= size
		g.drop(key, c)
	})
}

// drop drops the call, unless another one took its place when it was over. The caller
// holds the lock.
func (g *Group[K, V]) drop(key K, c *call[V]) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}
