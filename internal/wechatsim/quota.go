package wechatsim

import (
	"cmp"
	"net/http"
	"time"
)

// china is where WeChat's months begin.
var china = time.FixedZone("CST", 8*60*60)

// clearQuota puts the account's counts of a day's calls to zero. The limits of a
// minute, of forced refreshes and of one user's logins stay: they are limits of
// another kind, and what WeChat does about them is not documented.
func (s *Sim) clearQuota(req *request) (_ answer, issued bool) {
	refusal := 0
	switch {
	case req.method != http.MethodPost:
		refusal = 43002
	case len(req.raw) > 0 && req.badBody:
		refusal = 47001
	}
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	a, refusal := s.admit(req.AppID, req.AppSecret, req.ip)
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	if month := time.Now().In(china).Format("2006-01"); month != a.month {
		a.month, a.clearings = month, 0
	}
	if a.clearings >= cmp.Or(a.ClearingsPerMonth, defaultClearingsPerMonth) {
		return s.refuse(48006, req.ip), false
	}
	a.clearings++
	a.day, a.ticketDay = nil, nil
	return answeredOK(), false
}
