package wechatsim

import "time"

const day = 24 * time.Hour

// window holds the times of the calls that count towards a limit, oldest first.
type window []time.Time

// count returns how many calls lie less than span back, and forgets the others.
func (w *window) count(now time.Time, span time.Duration) int {
	for len(*w) > 0 && now.Sub((*w)[0]) >= span {
		*w = (*w)[1:]
	}
	return len(*w)
}
