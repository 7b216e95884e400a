package wechatsim

import (
	"cmp"
	"fmt"
	"net/http"
)

func (s *Sim) controlMint(w http.ResponseWriter, r *http.Request) {
	appid, known := s.known(w, r)
	if !known {
		return
	}
	var c Code
	err := decodeAny(r.Body, &c)
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s.Mint(appid, c))
}

func (s *Sim) controlTicket(w http.ResponseWriter, r *http.Request) {
	appid, known := s.known(w, r)
	if !known {
		return
	}
	var body struct {
		Type string `json:"type"`
	}
	err := decodeAny(r.Body, &body)
	body.Type = cmp.Or(body.Type, "jsapi")
	if err == nil && body.Type != "jsapi" && body.Type != "wx_card" {
		err = fmt.Errorf("unknown type %q: want jsapi or wx_card", body.Type)
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"ticket": s.ReplaceTicket(appid, body.Type)})
}

func (s *Sim) controlCheckSignature(w http.ResponseWriter, r *http.Request) {
	var sig Signature
	if err := decode(r.Body, &sig); err != nil {
		badRequest(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]bool{"accepted": s.CheckSignature(sig)})
}
