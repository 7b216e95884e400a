package wechatsim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Fault is what the platform does to a stable_token call instead of answering it
// properly. Its kinds:
//
//	errcode     answers Errcode and Errmsg, and does nothing
//	status      answers the HTTP status Status and a page of HTML, and does nothing
//	redirect    redirects to the same address with the HTTP status Status, and does nothing
//	notjson     answers HTTP 200 and a page of HTML, and does nothing
//	reset       resets the connection, and does nothing
//	hang        does nothing for Hang, or until the client gives up, then cuts the connection
//	lost        does its work, then cuts the connection without an answer
//	truncate    does its work, then cuts the connection in the middle of the answer
//	oversize    does its work, and appends a mebibyte of spaces to the answer
//	notoken     does its work, and leaves the token out of the answer
//	expires_in  does its work, and puts ExpiresIn into the answer
//	sametoken   does its work, but a forced call refreshes nothing
type Fault struct {
	AppID string `json:"appid"` // of the calls that it strikes; "" is every one
	Mode  string `json:"mode"`  // "normal" or "forced"; "" is both
	Kind  string `json:"kind"`

	Errcode int    `json:"errcode"` // for errcode; not 0
	Errmsg  string `json:"errmsg"`  // for errcode; "" is a text as WeChat writes them, with a rid

	Status    int           `json:"status"`     // for status, by default 500, and redirect, by default 307
	ExpiresIn string        `json:"expires_in"` // for expires_in: raw JSON; "" leaves the field out
	Hang      time.Duration `json:"hang"`       // for hang; 0 is until the client gives up

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
	"reset":      {false, deliverReset},
	"hang":       {false, deliverNothing},
	"lost":       {true, deliverNothing},
	"truncate":   {true, deliverHalf},
	"oversize":   {true, deliverOversize},
	"notoken":    {true, deliverWithoutToken},
	"expires_in": {true, deliverExpiresIn},
	"sametoken":  {true, deliverAnswer},
}

const (
	oversize = 1 << 20
	page     = "<html><body>the service is being maintained</body></html>\n"
)

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
	case f.Mode != "" && f.Mode != "normal" && f.Mode != "forced":
		return fmt.Errorf("unknown mode %q: want normal, forced or none", f.Mode)
	case f.Kind == "errcode" && f.Errcode == 0:
		return errors.New("a fault of kind errcode needs an errcode other than 0")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is not between 200 and 599", f.Status)
	case f.ExpiresIn != "" && !json.Valid([]byte(f.ExpiresIn)):
		return fmt.Errorf("expires_in %q is not JSON", f.ExpiresIn)
	case f.Times < 0 || f.Hang < 0:
		return errors.New("times and hang must not be negative")
	}
	return nil
}

// nextFault returns the fault that strikes a call, or the zero Fault, and uses
// up one of its times; s.mu is held.
func (s *Sim) nextFault(req request) Fault {
	mode := "normal"
	if req.ForceRefresh {
		mode = "forced"
	}
	for i := range s.faults {
		f := &s.faults[i]
		if f.AppID != "" && f.AppID != req.AppID || f.Mode != "" && f.Mode != mode {
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

// hang returns after d, or when the client has given up; 0 waits for the latter.
func hang(ctx context.Context, d time.Duration) {
	if d == 0 {
		<-ctx.Done()
	}
	wait(ctx, d)
}

func deliverAnswer(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	writeJSON(w, http.StatusOK, ans)
}

func deliverStatus(w http.ResponseWriter, _ *http.Request, f Fault, _ answer) {
	writePage(w, cmp.Or(f.Status, http.StatusInternalServerError))
}

func deliverRedirect(w http.ResponseWriter, r *http.Request, f Fault, _ answer) {
	http.Redirect(w, r, r.URL.Path, cmp.Or(f.Status, http.StatusTemporaryRedirect))
}

func deliverPage(w http.ResponseWriter, _ *http.Request, _ Fault, _ answer) {
	writePage(w, http.StatusOK)
}

// deliverReset closes the connection so that TCP, where there is one, says so
// with an RST.
func deliverReset(w http.ResponseWriter, _ *http.Request, _ Fault, _ answer) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // without it the client still sees the connection end
	}
	_ = conn.Close() // nobody is left to tell
}

func deliverNothing(http.ResponseWriter, *http.Request, Fault, answer) {
	panic(http.ErrAbortHandler)
}

func deliverHalf(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	body := encode(ans)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:len(body)/2])        // the client may be gone
	_ = http.NewResponseController(w).Flush() // as above
	panic(http.ErrAbortHandler)
}

func deliverOversize(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	writeBody(w, http.StatusOK, append(encode(ans), bytes.Repeat([]byte(" "), oversize)...))
}

func deliverWithoutToken(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	ans.Token = ""
	writeJSON(w, http.StatusOK, ans)
}

func deliverExpiresIn(w http.ResponseWriter, _ *http.Request, f Fault, ans answer) {
	if ans.Errcode == 0 {
		ans.ExpiresIn = json.RawMessage(f.ExpiresIn)
	}
	writeJSON(w, http.StatusOK, ans)
}

func writePage(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, page) // the client may be gone
}
