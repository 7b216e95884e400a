package wechat

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// replicationMemory is how long a replication state is believed. Vault sets a
// mount up anew when its node changes roles, so it is never wrong for longer.
const replicationMemory = time.Second

// cachedSystemView is Vault's view of the system with a memory for the replication
// state: the framework asks for it at every request, and each time is a call
// from the plugin's process to Vault's that costs as much as the rest of a
// cached read.
type cachedSystemView struct {
	logical.SystemView
	last atomic.Pointer[replicationState]
}

type replicationState struct {
	consts.ReplicationState
	local bool // the mount is not replicated
	asked time.Time
}

// ReplicationState returns Vault's answer of the last replicationMemory.
func (s *cachedSystemView) ReplicationState() consts.ReplicationState {
	return s.known().ReplicationState
}

// LocalMount returns Vault's answer of the last replicationMemory: whether a node may
// write is asked for at every read, and depends on both.
func (s *cachedSystemView) LocalMount() bool { return s.known().local }

func (s *cachedSystemView) known() *replicationState {
	last := s.last.Load()
	if now := time.Now(); last == nil || now.Sub(last.asked) >= replicationMemory {
		last = &replicationState{s.SystemView.ReplicationState(), s.SystemView.LocalMount(), now}
		s.last.Store(last)
	}
	return last
}
