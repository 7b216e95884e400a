package wechatsim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Fault is what the platform does to a call instead of answering it properly. Its
// kinds:
//
//	errcode     answers Errcode and Errmsg, and does nothing
//	status      answers the HTTP status Status and a page of HTML, and does nothing
//	redirect    redirects to the same address with the HTTP status Status, and does nothing
//	notjson     answers HTTP 200 and a page of HTML, and does nothing
//	raw         answers Status, Header and Body as they are, and does nothing
//	echo        answers Status and whatever it was sent, in several encodings, and does nothing
//	reset       resets the connection, and does nothing
//	hang        does nothing for Hang, or until the client gives up, then cuts the connection
//	lost        does its work, then cuts the connection without an answer
//	truncate    does its work, then cuts the connection in the middle of the answer
//	oversize    does its work, and appends a mebibyte of spaces to the answer
//	notoken     does its work, and leaves the token (ticket, openid, phone number) out of the answer
//	expires_in  does its work, and puts ExpiresIn into the answer
//	field       does its work, and puts Value into the answer's field Field
//	quoted      does its work, and puts the answer's numbers into quotes
//	bom         does its work, and puts a byte order mark before the answer
//	plain       does its work, and labels the answer text/plain
//	drip        does its work, and sends the answer byte by byte, Hang apart
//	headers     does its work, and sends headers without end
//	interim     does its work, and sends responses 103 without end
//	gzip        does its work, and sends the answer in gzip with a gibibyte of spaces after it
//	echoafter   does its work, answers, and then sends whatever it was sent on the same connection
//	sametoken   does its work, but a forced call refreshes nothing
type Fault struct {
	// API is the one whose calls it strikes, by its name; "" is stable_token, and
	// [AllAPIs] every API.
	API   string `json:"api"`
	AppID string `json:"appid"` // of the calls that it strikes; "" is every one
	Mode  string `json:"mode"`  // "normal" or "forced"; "" is both. Only stable_token has forced calls.
	Kind  string `json:"kind"`

	// Errcode is that of kind errcode, which needs one. With one of the kinds that
	// do their work it is answered in place of the work.
	Errcode int    `json:"errcode"`
	Errmsg  string `json:"errmsg"` // for Errcode; "" is a text as WeChat writes them
	Trace   string `json:"trace"`  // what such a text ends with: "" a rid, or hint, req_id or none

	Status    int               `json:"status"`     // by default 500 for status, 307 for redirect, 200 for raw and echo
	Header    map[string]string `json:"header"`     // for raw
	Body      string            `json:"body"`       // for raw
	ExpiresIn string            `json:"expires_in"` // for expires_in: raw JSON; "" leaves the field out
	Field     string            `json:"field"`      // for field: its name
	Value     string            `json:"value"`      // for field: raw JSON; "" leaves the field out
	Hang      time.Duration     `json:"hang"`       // for hang, where 0 is until the client gives up; for drip, by default 1s

	Times int `json:"times"` // how many calls it strikes; 0 is all until ClearFaults
}

// kinds says of each kind of fault whether the platform still does its work, and
// how the answer is then delivered. The kind "" is no fault.
var kinds = map[string]struct {
	works   bool
	deliver func(http.ResponseWriter, *http.Request, Fault, answer)
}{
	"":           {true, deliverAnswer},
	"errcode":    {false, deliverAnswer},
	"status":     {false, deliverStatus},
	"redirect":   {false, deliverRedirect},
	"notjson":    {false, deliverPage},
	"raw":        {false, deliverRaw},
	"echo":       {false, deliverEcho},
	"reset":      {false, deliverReset},
	"hang":       {false, deliverNothing},
	"lost":       {true, deliverNothing},
	"truncate":   {true, deliverHalf},
	"oversize":   {true, deliverOversize},
	"notoken":    {true, deliverWithoutToken},
	"expires_in": {true, deliverExpiresIn},
	"field":      {true, deliverField},
	"quoted":     {true, deliverQuoted},
	"bom":        {true, deliverBOM},
	"plain":      {true, deliverPlain},
	"drip":       {true, deliverDrip},
	"headers":    {true, deliverHeaders},
	"interim":    {true, deliverInterim},
	"gzip":       {true, deliverGzipBomb},
	"echoafter":  {true, deliverEchoAfter},
	"sametoken":  {true, deliverAnswer},
}

// Inject adds a fault. Of several that match a call, the one injected first
// strikes. Inject panics if the fault makes no sense, so that a misspelt fault
// cannot pass for none.
func (s *Sim) Inject(f Fault) {
	if err := f.validate(); err != nil {
		panic("wechatsim: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
}

// ClearFaults removes all faults. A call that hangs already goes on hanging.
func (s *Sim) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

func (f Fault) validate() error {
	_, known := kinds[f.Kind]
	switch {
	case f.Kind == "" || !known:
		return fmt.Errorf("unknown kind of fault %q", f.Kind)
	case !f.knowsAPI():
		return fmt.Errorf("unknown API %q", f.API)
	case f.Mode != "" && f.Mode != "normal" && f.Mode != "forced":
		return fmt.Errorf("unknown mode %q: want normal, forced or none", f.Mode)
	case f.Kind == "errcode" && f.Errcode == 0:
		return errors.New("a fault of kind errcode needs an errcode other than 0")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is not between 200 and 599", f.Status)
	case f.ExpiresIn != "" && !json.Valid([]byte(f.ExpiresIn)):
		return fmt.Errorf("expires_in %q is not JSON", f.ExpiresIn)
	case f.Kind == "field" && f.Field == "":
		return errors.New("a fault of kind field needs a field")
	case f.Value != "" && !json.Valid([]byte(f.Value)):
		return fmt.Errorf("value %q is not JSON", f.Value)
	case f.Trace != "" && !f.knowsTrace():
		return fmt.Errorf("unknown trace %q: want hint, req_id, none or nothing for a rid", f.Trace)
	case f.Times < 0 || f.Hang < 0:
		return errors.New("times and hang must not be negative")
	}
	return nil
}

func (f Fault) knowsAPI() bool {
	_, known := apis[f.API]
	return known || f.API == "" || f.API == AllAPIs
}

func (f Fault) knowsTrace() bool {
	_, known := traces[f.Trace]
	return known
}

// nextFault returns the fault that strikes a call, or the zero Fault, and uses
// up one of its times; s.mu is held.
func (s *Sim) nextFault(req *request) Fault {
	for i := range s.faults {
		f := &s.faults[i]
		if !f.strikes(req) {
			continue
		}
		struck := *f
		switch {
		case f.Times == 1:
			s.faults = slices.Delete(s.faults, i, i+1)
		case f.Times > 1:
			f.Times--
		}
		return struck
	}
	return Fault{}
}

func (f *Fault) strikes(req *request) bool {
	mode := "normal"
	if req.ForceRefresh {
		mode = "forced"
	}
	return (f.API == AllAPIs || cmp.Or(f.API, APIToken) == req.api) &&
		(f.AppID == "" || f.AppID == req.AppID) &&
		(f.Mode == "" || f.Mode == mode)
}
