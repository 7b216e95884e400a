package wechat

import (
	"time"
)

// What WeChat documents in numbers.
const (
	// maxLifetime is the longest life of a token.
	maxLifetime = 7200 * time.Second

	// overlap is the last part of a token's life, in which WeChat replaces it at a
	// normal call, and the old token and the new one both work.
	overlap = 300 * time.Second

	// The limits for forced refreshes of one appid.
	forcedPerDay  = 20
	forcedSpacing = 30 * time.Second
)

const (
	// refreshMargin is the life that a token has left when it is due. A normal call in
	// the overlap brings a new token; the 10 s between are for clocks that differ.
	refreshMargin = overlap - 10*time.Second

	// minCallInterval is the least time from an answer to the next call while nothing is
	// wrong: a life of 300 s or less, the least that WeChat documents, must not make
	// every read a call.
	minCallInterval = 10 * time.Second

	// ticketGrace is how long a ticket is used after WeChat last confirmed it: its
	// expires_in is always 7200 and says nothing.
	ticketGrace = 2 * time.Hour

	// ticketInterval is how often a ticket in use is compared with WeChat's. WeChat still
	// accepts one an hour after it was replaced.
	ticketInterval = 10 * time.Minute

	// ticketIdle is how long after its last use a ticket is no longer compared.
	ticketIdle = 2 * time.Hour
)
