package wechat

import "time"

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

	day = 24 * time.Hour
)
