package wechat

// quotaCleared ends the wait for the daily quota of all accounts that have the appid of
// this configuration, and of their tickets and revocations: the counters at WeChat went
// back to zero. It waits for nobody: whoever holds the lock of one of them, for a call
// that may take long, ends that one's wait when it lets go.
func (k *keeper) quotaCleared(cfg *config) {
	ap := k.appids.find(historyKey(cfg))
	if ap == nil {
		return // of an account that is not in memory no wait is known
	}
	for _, name := range ap.names() {
		if a := k.lookup(name); a != nil {
			if st := a.state.Load(); st != nil {
				a.renewTickets(st.way, isQuota)
			}
			a.quotaCleared.Store(true)
			k.heed(a)
		}
	}
}
