package wechatsim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// ControlHelp documents the control over HTTP.
const ControlHelp = `Control, with JSON bodies and durations like "90s", next to the platform's APIs:
  PATCH  /_sim/accounts/{appid}         create the account or change the fields named: secret, lifetime,
                                        overlap, allowed_ips, token_length, force_keeps_old, per_minute,
                                        per_day, forced_per_day, forced_spacing, bound, ticket_lifetime,
                                        tickets_per_day, logins_per_minute, clearings_per_month
  GET    /_sim/accounts/{appid}         its current access_token and tickets, and the most calls of
                                        stable_token, or of ?api=, that were in flight: max_in_flight
  POST   /_sim/accounts/{appid}/force   refresh by force, from outside the engine; answers the access_token
  POST   /_sim/accounts/{appid}/expire  kill all its tokens
  POST   /_sim/accounts/{appid}/ticket  replace the ticket of the type, jsapi by default; answers the ticket
  POST   /_sim/accounts/{appid}/codes   mint a user's code, good once and for five minutes, and answer it
                                        with what it gives; all fields may be left out: api
                                        (jscode2session, oauth2, getuserphonenumber), code, openid,
                                        unionid, scope, snapshot, risky, phone
  GET    /_sim/calls?api=&appid=        the calls so far of an API, by default stable_token, * for all;
                                        of all accounts without appid
  POST   /_sim/check                    tell whether an access_token is accepted now: its appid, and an
                                        errcode of 0 or 40001 replaced, 42001 expired, 40014 unknown;
                                        or a ticket: its appid and type, and whether it is accepted
  POST   /_sim/check-signature          tell whether WeChat's browser accepts what a page gives to
                                        wx.config: appid, timestamp, noncestr, url, signature
  PUT    /_sim/latency                  set the latency of all answers, or of those of an api
  POST   /_sim/faults                   add a fault: kind, api (stable_token by default, * for all), appid,
                                        mode (normal, forced), times, and what the kind needs:
           errcode                      errcode, errmsg, trace (hint, req_id, none)
           status, redirect             status
           raw                          status, header, body
           echo                         status
           hang, drip                   hang
           expires_in                   expires_in
           field                        field, value
           notjson, reset, lost, truncate, oversize, notoken, quoted, bom, plain, headers, interim,
           gzip, echoafter, sametoken   nothing
  DELETE /_sim/faults                   remove all faults
The APIs are stable_token, jscode2session, oauth2, clear_quota, getticket, rid, getuserphonenumber
and getcallbackip.
`

// duration is a [time.Duration] that reads as text like "90s" in JSON.
type duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

func (s *Sim) controlRoutes() {
	s.mux.HandleFunc("PATCH /_sim/accounts/{appid}", s.controlUpdate)
	s.mux.HandleFunc("GET /_sim/accounts/{appid}", s.controlAccount)
	s.mux.HandleFunc("POST /_sim/accounts/{appid}/force", s.controlForce)
	s.mux.HandleFunc("POST /_sim/accounts/{appid}/expire", s.controlExpire)
	s.mux.HandleFunc("POST /_sim/accounts/{appid}/ticket", s.controlTicket)
	s.mux.HandleFunc("POST /_sim/accounts/{appid}/codes", s.controlMint)
	s.mux.HandleFunc("GET /_sim/calls", s.controlCalls)
	s.mux.HandleFunc("POST /_sim/check", s.controlCheck)
	s.mux.HandleFunc("POST /_sim/check-signature", s.controlCheckSignature)
	s.mux.HandleFunc("PUT /_sim/latency", s.controlLatency)
	s.mux.HandleFunc("POST /_sim/faults", s.controlInject)
	s.mux.HandleFunc("DELETE /_sim/faults", s.controlClearFaults)
}

func (s *Sim) controlUpdate(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody)) // before the lock is taken
	if err == nil {
		err = s.patch(r.PathValue("appid"), body)
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// patch changes the settings that body names. A body that is wrong changes
// nothing.
func (s *Sim) patch(appid string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var settings Account
	if a, known := s.accounts[appid]; known {
		settings = a.Account
		settings.AllowedIPs = slices.Clone(a.AllowedIPs)
	}
	// The fields of the view hide those of the same name in Account, and write
	// through to them.
	err := decode(bytes.NewReader(body), &struct {
		*Account
		Lifetime       *duration `json:"lifetime"`
		Overlap        *duration `json:"overlap"`
		ForcedSpacing  *duration `json:"forced_spacing"`
		TicketLifetime *duration `json:"ticket_lifetime"`
	}{
		&settings,
		(*duration)(&settings.Lifetime),
		(*duration)(&settings.Overlap),
		(*duration)(&settings.ForcedSpacing),
		(*duration)(&settings.TicketLifetime),
	})
	if err == nil {
		s.account(appid).Account = settings
	}
	return err
}

func (s *Sim) controlAccount(w http.ResponseWriter, r *http.Request) {
	appid, known := s.known(w, r)
	if !known {
		return
	}
	if api, known := knownAPI(w, r); known {
		writeJSON(w, http.StatusOK, map[string]any{
			"access_token":  s.Current(appid),
			"max_in_flight": s.MaxInFlightOf(api, appid),
			"tickets": map[string]string{
				"jsapi":   s.CurrentTicket(appid, "jsapi"),
				"wx_card": s.CurrentTicket(appid, "wx_card"),
			},
		})
	}
}

func (s *Sim) controlForce(w http.ResponseWriter, r *http.Request) {
	if appid, known := s.known(w, r); known {
		writeJSON(w, http.StatusOK, map[string]string{"access_token": s.ForceOutside(appid)})
	}
}

func (s *Sim) controlExpire(w http.ResponseWriter, r *http.Request) {
	if appid, known := s.known(w, r); known {
		s.ExpireAll(appid)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Sim) controlCalls(w http.ResponseWriter, r *http.Request) {
	if api, known := knownAPI(w, r); known {
		writeJSON(w, http.StatusOK, s.CallsOf(api, r.URL.Query().Get("appid")))
	}
}

// knownAPI returns the API that the query names, by default stable_token; if there
// is no such API, it answers the request.
func knownAPI(w http.ResponseWriter, r *http.Request) (name string, known bool) {
	name = cmp.Or(r.URL.Query().Get("api"), APIToken)
	if _, known = apis[name]; !known && name != AllAPIs {
		badRequest(w, fmt.Errorf("unknown API %q", name))
		return name, false
	}
	return name, true
}

func (s *Sim) controlCheck(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Token  string `json:"access_token"`
		Ticket string `json:"ticket"`
	}
	if err := decode(r.Body, &body); err != nil {
		badRequest(w, err)
		return
	}
	if body.Ticket != "" {
		appid, typ, accepted := s.CheckTicket(body.Ticket)
		writeJSON(w, http.StatusOK, map[string]any{"appid": appid, "type": typ, "accepted": accepted})
		return
	}
	appid, errcode := s.Check(body.Token)
	writeJSON(w, http.StatusOK, map[string]any{"appid": appid, "errcode": errcode})
}

func (s *Sim) controlLatency(w http.ResponseWriter, r *http.Request) {
	var body struct {
		API     string   `json:"api"`
		Latency duration `json:"latency"`
	}
	err := decode(r.Body, &body)
	if _, known := apis[body.API]; err == nil && body.API != "" && !known {
		err = fmt.Errorf("unknown API %q", body.API)
	}
	switch {
	case err != nil:
		badRequest(w, err)
		return
	case body.API == "":
		s.SetLatency(time.Duration(body.Latency))
	default:
		s.SetLatencyOf(body.API, time.Duration(body.Latency))
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Sim) controlInject(w http.ResponseWriter, r *http.Request) {
	var f Fault
	err := decode(r.Body, &struct {
		*Fault
		Hang *duration `json:"hang"` // hides Fault's, and writes through to it
	}{&f, (*duration)(&f.Hang)})
	if err == nil {
		err = f.validate()
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	s.Inject(f)
	w.WriteHeader(http.StatusNoContent)
}

func (s *Sim) controlClearFaults(w http.ResponseWriter, _ *http.Request) {
	s.ClearFaults()
	w.WriteHeader(http.StatusNoContent)
}

// known returns the AppID that the path names; if there is no such account, it
// answers the request.
func (s *Sim) known(w http.ResponseWriter, r *http.Request) (appid string, known bool) {
	appid = r.PathValue("appid")
	s.mu.Lock()
	_, known = s.accounts[appid]
	s.mu.Unlock()
	if !known {
		writeJSON(w, http.StatusNotFound, map[string]string{"error": fmt.Sprintf("no account %q", appid)})
	}
	return appid, known
}

// decode reads one JSON value that has no field that v lacks.
func decode(r io.Reader, v any) error {
	d := json.NewDecoder(io.LimitReader(r, maxBody))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// decodeAny does the same, and takes no body at all for an empty one.
func decodeAny(r io.Reader, v any) error {
	if err := decode(r, v); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func badRequest(w http.ResponseWriter, err error) {
	writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
}
