package wechatsim

import (
	"cmp"
	"net/http"
	"time"
)

const (
	// ticketSeconds is the expires_in of a ticket, whatever is left of its life.
	ticketSeconds = 7200

	// ticketOverlap is how long a ticket is accepted after it was replaced.
	ticketOverlap = time.Hour

	ticketLength = 86 // characters
)

// ticket is a ticket, accepted or not.
type ticket struct {
	value    string
	typ      string // jsapi or wx_card
	account  *account
	issued   time.Time
	replaced time.Time // zero for the newest of its account and type
}

// getTicket hands out the account's ticket, or a new one. The new one comes of the
// first call after the life of the old one, which is accepted until then and an
// hour longer.
func (s *Sim) getTicket(req *request) (_ answer, issued bool) {
	now := time.Now()
	a, refusal := s.admitToken(req)
	switch {
	case req.method != http.MethodGet:
		refusal = 43001
	case refusal != 0:
	case req.Type != "jsapi" && req.Type != "wx_card":
		refusal = 40097
	case a.ticketDay.count(now, day) >= cmp.Or(a.TicketsPerDay, defaultTicketsPerDay):
		refusal = 45009
	}
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	a.ticketDay = append(a.ticketDay, now)
	t := a.tickets[req.Type]
	if t == nil || now.Sub(t.issued) >= cmp.Or(a.TicketLifetime, defaultTicketLifetime) {
		t, issued = s.newTicket(a, req.Type, now), true
	}
	return answeredOK(field{"ticket", t.value}, field{"expires_in", ticketSeconds}), issued
}

// newTicket replaces the account's ticket of a type; s.mu is held.
func (s *Sim) newTicket(a *account, typ string, now time.Time) *ticket {
	if old := a.tickets[typ]; old != nil {
		old.replaced = now
	}
	t := &ticket{value: randomToken(ticketLength), typ: typ, account: a, issued: now}
	a.tickets[typ] = t
	s.tickets[t.value] = t
	return t
}

// accepted tells whether the ticket makes good signatures.
func (t *ticket) accepted(now time.Time) bool {
	return t.replaced.IsZero() || now.Sub(t.replaced) < ticketOverlap
}

// ReplaceTicket makes a new ticket of a type, jsapi or wx_card, before the life of
// the old one is over, and returns it. The old one is accepted for another hour.
func (s *Sim) ReplaceTicket(appid, typ string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newTicket(s.account(appid), typ, time.Now()).value
}

// CurrentTicket returns the newest ticket of an account and type, or "" if there
// is none.
func (s *Sim) CurrentTicket(appid, typ string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, known := s.accounts[appid]; known && a.tickets[typ] != nil {
		return a.tickets[typ].value
	}
	return ""
}

// CheckTicket tells whose a ticket is, of which type, and whether it is accepted
// now; the AppID is "" if the ticket was never issued.
func (s *Sim) CheckTicket(value string) (appid, typ string, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.tickets[value]
	if !known {
		return "", "", false
	}
	return t.account.id, t.typ, t.accepted(time.Now())
}
