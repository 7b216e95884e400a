package wechatsim

import (
	"net/http"
	"time"
)

// phoneNumber gives the phone number of a mini program's user for a code of its
// own.
func (s *Sim) phoneNumber(req *request) (_ answer, issued bool) {
	a, refusal := s.admitToken(req)
	switch {
	case req.method != http.MethodPost:
		refusal = 43002
	case refusal == 0 && req.badBody:
		refusal = 47001
	}
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	c, refusal := s.redeem(a, req)
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	return answeredOK(field{"phone_info", map[string]any{
		"phoneNumber":     c.Phone,
		"purePhoneNumber": c.Phone,
		"countryCode":     "86",
		"watermark":       map[string]any{"timestamp": time.Now().Unix(), "appid": a.id},
	}}), true
}

// callbackIP answers an API that needs a token, and is of use here for that only.
func (s *Sim) callbackIP(req *request) (_ answer, issued bool) {
	if _, refusal := s.admitToken(req); refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	return answered(field{"ip_list", []string{"127.0.0.1"}}), false
}
