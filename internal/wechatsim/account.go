package wechatsim

import (
	"slices"
	"time"
)

// What WeChat documents, and what an [Account] has unless it says otherwise.
const (
	defaultLifetime      = 7200 * time.Second
	defaultOverlap       = 300 * time.Second
	defaultTokenLength   = 512
	defaultPerMinute     = 10_000
	defaultPerDay        = 500_000
	defaultForcedPerDay  = 20
	defaultForcedSpacing = 30 * time.Second

	defaultTicketLifetime    = 7200 * time.Second
	defaultTicketsPerDay     = 100_000 // not documented for every kind of account
	defaultLoginsPerMinute   = 100
	defaultClearingsPerMonth = 10
)

// minTokenLength keeps random tokens unique: 16 characters carry 96 bits.
const minTokenLength = 16

// Account holds the settings of one account. A zero field stands for what WeChat
// documents.
type Account struct {
	Secret string `json:"secret"`

	// Lifetime is that of a new token; tokens already issued keep theirs.
	Lifetime time.Duration `json:"lifetime"`

	// Overlap is the last part of a token's life, in which a normal call issues a
	// new token while the old one lives on to its end. It should be well below
	// Lifetime: otherwise every normal call issues a new token. A negative one
	// switches the overlap off.
	Overlap time.Duration `json:"overlap"`

	// AllowedIPs are the addresses that may make the calls which take the AppSecret;
	// empty admits everybody.
	AllowedIPs []string `json:"allowed_ips"`

	// TokenLength is the number of characters of a new token, at least 16.
	TokenLength int `json:"token_length"`

	// ForceKeepsOld makes a forced call leave the token that it replaces alive for
	// the overlap, as is reported of WeChat but not documented. The next forced
	// call kills that token for certain.
	ForceKeepsOld bool `json:"force_keeps_old"`

	// PerMinute and PerDay limit the calls of stable_token, ForcedPerDay only those
	// that refresh by force. The windows roll: a call counts for exactly a minute or 24 hours,
	// and a call that is refused does not count.
	PerMinute    int `json:"per_minute"`
	PerDay       int `json:"per_day"`
	ForcedPerDay int `json:"forced_per_day"`

	// ForcedSpacing is the least time between two forced refreshes. A forced call
	// that comes sooner is answered with the current token, and does not count.
	ForcedSpacing time.Duration `json:"forced_spacing"`

	// Bound says that the account is bound to an open-platform account, so that the
	// login of a mini program tells the user's unionid.
	Bound bool `json:"bound"`

	// TicketLifetime is the time after which a call of getticket makes a new ticket.
	TicketLifetime time.Duration `json:"ticket_lifetime"`

	// TicketsPerDay limits the calls of getticket, LoginsPerMinute the exchanges of
	// one user's codes, ClearingsPerMonth those of clear_quota in a calendar month
	// of China's. A call that is refused does not count.
	TicketsPerDay     int `json:"tickets_per_day"`
	LoginsPerMinute   int `json:"logins_per_minute"`
	ClearingsPerMonth int `json:"clearings_per_month"`
}

// account is an account with its tokens and what it has used of its limits.
type account struct {
	Account
	id                  string
	tokens              []*token // the live ones and the newest, which comes last
	minute, day, forced window   // of stable_token

	tickets   map[string]*ticket // the newest of each type
	ticketDay window             // of getticket
	logins    map[string]*window // of the last minute, by the user's openid
	clearings int                // of clear_quota, in month
	month     string
}

// SetAccount replaces the settings of an account, which keeps its tokens and what
// it has used of its limits. An account that does not exist is created.
func (s *Sim) SetAccount(appid string, a Account) {
	s.Update(appid, func(settings *Account) { *settings = a })
}

// Update lets f change the settings of an account in one step; f must not call
// the Sim. An account that does not exist is created.
func (s *Sim) Update(appid string, f func(*Account)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account(appid)
	f(&a.Account)
	a.AllowedIPs = slices.Clone(a.AllowedIPs)
}

// account returns the account of an AppID, which it creates if need be; s.mu is
// held.
func (s *Sim) account(appid string) *account {
	a, known := s.accounts[appid]
	if !known {
		a = &account{id: appid, tickets: map[string]*ticket{}, logins: map[string]*window{}}
		s.accounts[appid] = a
	}
	return a
}
