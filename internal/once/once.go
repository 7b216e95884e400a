// Package once makes one call for all requests that ask the same, and remembers its
// answer for a while: singleflight with a memory.
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
	calls map[K]*call[V] // in progress, or remembered
}

type call[V any] struct {
	done  chan struct{} // closed when value and err are set
	value V
	err   error
}

// New returns a Group that remembers answers for the given time, and at most so many.
func New[K comparable, V any](ctx context.Context, remember time.Duration, most int) *Group[K, V] {
	return &Group[K, V]{ctx: ctx, remember: remember, most: most, calls: make(map[K]*call[V])}
}

// Do returns the answer for key: the one that is remembered or on its way, or else that
// of f. keep says of f's answer, good or bad, whether it is remembered.
func (g *Group[K, V]) Do(ctx context.Context, key K, f func(context.Context) (answer V, keep bool, err error)) (V, error) {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
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

func (g *Group[K, V]) run(key K, c *call[V], f func(context.Context) (V, bool, error)) {
	var keep bool
	c.value, keep, c.err = f(g.ctx)
	if g.ctx.Err() != nil {
		keep, c.err = false, context.Cause(g.ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	close(c.done)
	if !keep || len(g.calls) > g.most {
		delete(g.calls, key)
		return
	}
	time.AfterFunc(g.remember, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.calls, key)
	})
}
