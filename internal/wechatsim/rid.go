package wechatsim

import (
	"net/http"
	"slices"
	"time"
)

const (
	ridLifetime = 7 * day
	maxRefusals = 10_000 // that are remembered
)

// refused is a call that was refused, as its rid tells of it.
type refused struct {
	rid    string
	appid  string
	time   time.Time
	url    string // path and query
	body   string
	answer string
	ip     string
}

// remember keeps a call for the look-up of its rid; s.mu is held.
func (s *Sim) remember(req *request, ans answer) {
	if ans.rid == "" {
		return
	}
	if len(s.refusals) >= maxRefusals {
		s.refusals = slices.Delete(s.refusals, 0, maxRefusals/10)
	}
	s.refusals = append(s.refusals, refused{
		rid: ans.rid, appid: req.AppID, time: time.Now(),
		url: req.url, body: string(req.raw), answer: string(encode(ans)), ip: req.ip,
	})
}

// lookUpRid tells the holder of a token of the account what a call of the account
// carried, for seven days. Secrets in it are not masked: whether WeChat masks them
// is not documented.
func (s *Sim) lookUpRid(req *request) (_ answer, issued bool) {
	a, errcode := s.admitToken(req)
	switch {
	case req.method != http.MethodPost:
		errcode = 43002
	case errcode == 0 && req.badBody:
		errcode = 47001
	}
	if errcode != 0 {
		return s.refuse(errcode, req.ip), false
	}
	for _, r := range slices.Backward(s.refusals) {
		if r.rid != req.Rid || time.Since(r.time) >= ridLifetime {
			continue
		}
		if r.appid != a.id {
			return s.refuse(76003, req.ip), false
		}
		return answeredOK(field{"request", map[string]any{
			"invoke_time":   r.time.Unix(),
			"cost_in_ms":    1,
			"request_url":   r.url,
			"request_body":  r.body,
			"response_body": r.answer,
			"client_ip":     r.ip,
		}}), false
	}
	return s.refuse(76001, req.ip), false
}
