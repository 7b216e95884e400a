// Package wechatsim plays WeChat's side of the calls that take an AppSecret, and of
// some that take the token which comes of them: it issues, renews, replaces and
// checks tokens, tickets and the codes of logins by the documented rules, and
// misbehaves on request.
//
// A [Sim] is an [http.Handler] without goroutines or timers of its own. Serve it
// on a loopback port with [Sim.Start], or inside a testing/synctest bubble over a
// [Pipe], where hours of a token's life pass in no time.
package wechatsim

import (
	"net/http"
	"sync"
	"time"
)

// Sim is the platform. Its methods may be called at any time, also while it
// serves; times are those of [time.Now].
type Sim struct {
	mux *http.ServeMux

	mu        sync.Mutex // guards all that follows
	accounts  map[string]*account
	tokens    map[string]*token // every token ever issued, by its value
	codes     map[string]*code  // every code ever minted, by its value
	tickets   map[string]*ticket
	refusals  []refused // the newest, oldest first, for the look-up of a rid
	faults    []Fault
	latency   time.Duration
	latencies map[string]time.Duration // of the APIs that have one of their own
	onCall    map[string]func(Call)    // by API
	calls     []*Call
	texts     int // error texts written so far

	// The calls in flight and the most there ever were.
	inFlight, maxInFlight map[counted]int
}

// New returns a platform without accounts, faults or latency.
func New() *Sim {
	s := &Sim{
		mux:         http.NewServeMux(),
		accounts:    map[string]*account{},
		tokens:      map[string]*token{},
		codes:       map[string]*code{},
		tickets:     map[string]*ticket{},
		latencies:   map[string]time.Duration{},
		onCall:      map[string]func(Call){},
		inFlight:    map[counted]int{},
		maxInFlight: map[counted]int{},
	}
	s.routes()
	return s
}
