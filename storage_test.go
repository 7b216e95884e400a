package wechat

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

// faultyStorage fails or is cut off at an operation of the test's choice, and
// counts operations.
type faultyStorage struct {
	logical.InmemStorage
	mu     sync.Mutex
	ops    int                        // operations so far
	writes int                        // of them, those that change something
	fail   func(op, key string) error // called before an operation; nil lets all through
	hook   func(op, key string)       // called before that, without the lock: it may use the storage
	lose   int                        // counts down to the operation whose answer is lost
}

var errStorage = errors.New("storage is out of order")

func newFaultyStorage() *faultyStorage { return &faultyStorage{} }

func (s *faultyStorage) begin(op, key string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil {
		hook(op, key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops++
	if op == "put" || op == "delete" {
		s.writes++
	}
	if strings.Contains(key, "..") {
		return logical.ErrRelativePath // as Vault's storage does
	}
	if s.fail != nil {
		return s.fail(op, key)
	}
	return nil
}

// end reports a failure although the operation took effect, if the test says so.
func (s *faultyStorage) end(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lose > 0 {
		if s.lose--; s.lose == 0 {
			return errStorage
		}
	}
	return err
}

// losingAnswer lets the n-th operation from now report a failure although it
// takes effect; 0 is none.
func (s *faultyStorage) losingAnswer(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = n
}

func (s *faultyStorage) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// written returns how many operations would have changed something.
func (s *faultyStorage) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

// hooked has f called before each operation; nil has nothing called.
func (s *faultyStorage) hooked(f func(op, key string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// failing sets what fails; nil is nothing.
func (s *faultyStorage) failing(fail func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *faultyStorage) List(ctx context.Context, prefix string) ([]string, error) {
	if err := s.begin("list", prefix); err != nil {
		return nil, err
	}
	keys, err := s.InmemStorage.List(ctx, prefix)
	return keys, s.end(err)
}

func (s *faultyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := s.begin("get", key); err != nil {
		return nil, err
	}
	entry, err := s.InmemStorage.Get(ctx, key)
	return entry, s.end(err)
}

func (s *faultyStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if err := s.begin("put", entry.Key); err != nil {
		return err
	}
	return s.end(s.InmemStorage.Put(ctx, entry))
}

func (s *faultyStorage) Delete(ctx context.Context, key string) error {
	if err := s.begin("delete", key); err != nil {
		return err
	}
	return s.end(s.InmemStorage.Delete(ctx, key))
}
