package wechatsim

import (
	"context"
	"slices"
	"time"
)

// Call is one call of an API, as the platform saw it.
type Call struct {
	Time    time.Time `json:"time"`    // of its arrival
	API     string    `json:"api"`     // its name, such as [APIToken]
	AppID   string    `json:"appid"`   // as sent, whether known or not, or that of the token's account
	Forced  bool      `json:"forced"`  // force_refresh was set
	Errcode int       `json:"errcode"` // of the answer; 0 if it carried none
	Fault   string    `json:"fault"`   // the kind of the fault that struck it, if any
	Issued  bool      `json:"issued"`  // it made a token, a ticket or a session, delivered or not
}

// counted is what calls are counted by: the name of an API or [AllAPIs], and an
// AppID or "" for all accounts.
type counted struct{ api, appid string }

// OnCall sets a function that is called with each stable_token call on its
// arrival, before the platform does anything about it; nil removes it. The
// function may block to hold the call, and may call the Sim.
func (s *Sim) OnCall(f func(Call)) {
	s.OnCallOf(APIToken, f)
}

// OnCallOf does for the calls of an API what [Sim.OnCall] does for stable_token;
// it panics if there is no such API.
func (s *Sim) OnCallOf(api string, f func(Call)) {
	mustKnow(api)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCall[api] = f
}

// Calls returns the stable_token calls that named an AppID, in the order of their
// arrival; "" stands for all calls, also those that named none.
func (s *Sim) Calls(appid string) []Call {
	return s.CallsOf(APIToken, appid)
}

// CallsOf returns the calls of an API, or of [AllAPIs], as [Sim.Calls] does; it
// panics if there is no such API.
func (s *Sim) CallsOf(api, appid string) []Call {
	if api != AllAPIs {
		mustKnow(api)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := []Call{}
	for _, c := range s.calls {
		if (api == AllAPIs || c.API == api) && (appid == "" || c.AppID == appid) {
			calls = append(calls, *c)
		}
	}
	return calls
}

// MaxInFlight returns the highest number of stable_token calls for an AppID that
// ever were at the platform at the same time; "" stands for all calls.
func (s *Sim) MaxInFlight(appid string) int {
	return s.MaxInFlightOf(APIToken, appid)
}

// MaxInFlightOf returns for an API, or for [AllAPIs] together, what
// [Sim.MaxInFlight] does; it panics if there is no such API.
func (s *Sim) MaxInFlightOf(api, appid string) int {
	if api != AllAPIs {
		mustKnow(api)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxInFlight[counted{api, appid}]
}

// SetLatency sets how long the platform holds back each answer of every API, also
// of those that had a latency of their own. What a call does is done on its
// arrival, so that a client who gives up sooner misses the outcome, not the
// effect.
func (s *Sim) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
	clear(s.latencies)
}

// SetLatencyOf sets the latency of one API until the next [Sim.SetLatency]; it
// panics if there is no such API.
func (s *Sim) SetLatencyOf(api string, d time.Duration) {
	mustKnow(api)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latencies[api] = d
}

// mustKnow panics for the name of an API that there is not, so that a misspelt
// one cannot pass for one that is never called.
func mustKnow(api string) {
	if _, known := apis[api]; !known {
		panic("wechatsim: unknown API " + api)
	}
}

// call takes a call from its arrival until its answer is due.
func (s *Sim) call(ctx context.Context, req *request) (answer, Fault) {
	call, onCall := s.arrive(req)
	defer s.depart(req)
	if onCall != nil {
		onCall(Call{Time: call.Time, API: call.API, AppID: call.AppID, Forced: call.Forced})
	}
	ans, fault, latency := s.handle(call, req)
	wait(ctx, latency)
	if fault.Kind == "hang" {
		hang(ctx, fault.Hang)
	}
	return ans, fault
}

// arrive records a call that came in.
func (s *Sim) arrive(req *request) (*Call, func(Call)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, known := s.tokens[req.AccessToken]; known {
		req.AppID = t.account.id
	}
	call := &Call{Time: time.Now().UTC(), API: req.api, AppID: req.AppID, Forced: req.ForceRefresh}
	s.calls = append(s.calls, call)
	for _, key := range req.countedAs() {
		s.inFlight[key]++
		s.maxInFlight[key] = max(s.maxInFlight[key], s.inFlight[key])
	}
	return call, s.onCall[req.api]
}

// depart undoes what arrive counted as in flight.
func (s *Sim) depart(req *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range req.countedAs() {
		s.inFlight[key]--
	}
}

// handle does what a call asks for, or what a fault makes of it, and records the
// outcome in call.
func (s *Sim) handle(call *Call, req *request) (answer, Fault, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault := s.nextFault(req)
	call.Fault = fault.Kind
	var ans answer
	switch {
	case fault.Errcode != 0:
		ans = s.refuseAs(fault.Trace, fault.Errcode, req.ip)
		if fault.Errmsg != "" {
			ans.set("errmsg", fault.Errmsg)
		}
	case kinds[fault.Kind].works:
		req.unforced = fault.Kind == "sametoken"
		ans, call.Issued = apis[req.api].work(s, req)
	}
	call.Errcode = ans.errcode
	s.remember(req, ans)
	latency, own := s.latencies[req.api]
	if !own {
		latency = s.latency
	}
	return ans, fault, latency
}

// admit checks the credentials of a call that carries them, and the address that
// it comes from. It returns the account, or the errcode of the refusal; s.mu is
// held.
func (s *Sim) admit(appid, secret, ip string) (*account, int) {
	a, known := s.accounts[appid]
	switch {
	case appid == "":
		return nil, 41002
	case secret == "":
		return nil, 41004
	case !known:
		return nil, 40013
	case !sameText(secret, a.Secret):
		return nil, 40125
	case len(a.AllowedIPs) > 0 && !slices.Contains(a.AllowedIPs, ip):
		return nil, 40164
	}
	return a, 0
}

// admitToken checks the token of a call that needs one. It returns the token's
// account, or the errcode of the refusal; s.mu is held.
func (s *Sim) admitToken(req *request) (*account, int) {
	if req.AccessToken == "" {
		return nil, 41001
	}
	t, errcode := s.check(req.AccessToken)
	if errcode != 0 {
		return nil, errcode
	}
	return t.account, 0
}

// wait returns after d, or when the client has given up.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// hang returns after d, or when the client has given up; 0 waits for the latter.
func hang(ctx context.Context, d time.Duration) {
	if d == 0 {
		<-ctx.Done()
	}
	wait(ctx, d)
}
