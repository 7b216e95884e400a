package wechatsim

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	maxBody     = 64 << 10 // of a request, in bytes
	contentType = "application/json; encoding=utf-8"
)

// request is a stable_token call as it came in.
type request struct {
	GrantType    string `json:"grant_type"`
	AppID        string `json:"appid"`
	Secret       string `json:"secret"`
	ForceRefresh bool   `json:"force_refresh"`

	ip        string // of the caller
	malformed int    // the errcode for a call that is wrong in form, or 0
}

// answer is the body of an answer to a stable_token call: a token or an error.
type answer struct {
	Errcode   int             `json:"errcode,omitempty"`
	Errmsg    string          `json:"errmsg,omitempty"`
	Token     string          `json:"access_token,omitempty"`
	ExpiresIn json.RawMessage `json:"expires_in,omitempty"`
}

// Start serves s on a free loopback port until stop is called, as [Sim.Serve]
// does. The base URL has no trailing slash.
func (s *Sim) Start() (baseURL string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	return "http://" + l.Addr().String(), s.Serve(l), nil
}

// Serve serves s on l in the background. Calling stop closes l and all
// connections, and waits until the calls that they carried have ended.
func (s *Sim) Serve(l net.Listener) (stop func()) {
	var serving sync.WaitGroup // the listener and each connection
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				serving.Add(1)
			case http.StateClosed, http.StateHijacked:
				serving.Done()
			}
		},
	}
	serving.Go(func() {
		_ = srv.Serve(l)
		_ = srv.Close() // the connection that was accepted while stop closed the others
	})
	return func() {
		_ = srv.Close()
		serving.Wait()
	}
}

// ServeHTTP serves the platform's API and, below /_sim/, the control over HTTP,
// which [ControlHelp] documents. Some faults end in a panic with
// [http.ErrAbortHandler], which an [http.Server] takes as the order to cut the
// connection.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mux.ServeHTTP(w, r)
}

func (s *Sim) routes() {
	s.mux.HandleFunc("/cgi-bin/stable_token", s.serveStableToken)
	s.mux.HandleFunc("/cgi-bin/getcallbackip", s.serveCallbackIP)
	s.controlRoutes()
}

// serveStableToken serves the call that hands out tokens.
func (s *Sim) serveStableToken(w http.ResponseWriter, r *http.Request) {
	ans, fault := s.call(r.Context(), parseRequest(r))
	kinds[fault.Kind].deliver(w, r, fault, ans)
}

// serveCallbackIP serves an API that needs a token, and is of use here for that
// only. Faults do not strike it.
func (s *Sim) serveCallbackIP(w http.ResponseWriter, r *http.Request) {
	errcode := 41001
	if token := r.URL.Query().Get("access_token"); token != "" {
		_, errcode = s.Check(token)
	}
	var body any = map[string][]string{"ip_list": {"127.0.0.1"}}
	s.mu.Lock()
	if errcode != 0 {
		body = s.refuse(errcode, callerIP(r))
	}
	latency := s.latency
	s.mu.Unlock()
	wait(r.Context(), latency)
	writeJSON(w, http.StatusOK, body)
}

// parseRequest reads a stable_token call to the end, so that the server notices
// when the client gives up.
func parseRequest(r *http.Request) request {
	var req request
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	switch {
	case r.Method != http.MethodPost:
		req.malformed = 43002
	case err != nil || json.Unmarshal(body, &req) != nil:
		req.malformed = 47001
	case req.AppID == "":
		req.malformed = 41002
	case req.Secret == "":
		req.malformed = 41004
	case req.GrantType != "client_credential":
		req.malformed = 40002
	}
	req.ip = callerIP(r)
	return req
}

// countedAs returns the keys under which a call in flight is counted.
func (req request) countedAs() []string {
	if req.AppID == "" {
		return []string{""}
	}
	return []string{"", req.AppID}
}

// callerIP returns the host of the remote address.
func callerIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// errmsgs are the texts of the errcodes. {ip} and {ipv6} stand for the caller's
// address.
var errmsgs = map[int]string{
	-1:    "system error",
	40001: "invalid credential, access_token is invalid or not latest",
	40002: "invalid grant_type",
	40013: "invalid appid",
	40014: "invalid access_token",
	40125: "invalid appsecret",
	40164: "invalid ip {ip} ipv6 {ipv6}, not in whitelist",
	40243: "appsecret is frozen",
	41001: "access_token missing",
	41002: "appid missing",
	41004: "appsecret missing",
	42001: "access_token expired",
	43002: "require POST method",
	45009: "reach max api daily quota limit",
	45011: "api minute-quota reach limit, must slower, retry next minute",
	45035: "access clientip is not registered, not in ip-white-list, requestIP: {ip}",
	47001: "data format error",
	48004: "api forbidden for irregularities",
	50002: "user limited",
	50004: "account punished",
	61004: "access clientip is not registered, requestIP: {ip}",
	89501: "ip {ip} waits for the administrator to confirm",
	89503: "ip {ip} needs the administrator to confirm",
	89506: "ip {ip} was refused twice by the administrator, try again after 24 hours",
	89507: "ip {ip} was refused by the administrator, try again after 1 hour",
}

// refuse returns the answer for an errcode; s.mu is held. How the rid follows the
// text varies from answer to answer, as it does with WeChat; only the text that
// names an IP in documented words always has the documented form.
func (s *Sim) refuse(errcode int, ip string) answer {
	text, known := errmsgs[errcode]
	if !known {
		text = "error"
	}
	text = strings.NewReplacer("{ip}", ip, "{ipv6}", ipv6(ip)).Replace(text)

	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	short := fmt.Sprintf("%08x", time.Now().Unix())
	long := fmt.Sprintf("%s-%x-%x", short, b[:4], b[4:])
	forms := []string{" rid: " + long, ", rid: " + long, ", rid: " + short}
	form := forms[s.rids%len(forms)]
	s.rids++
	if errcode == 40164 {
		form = forms[0]
	}
	return answer{Errcode: errcode, Errmsg: text + form}
}

// ipv6 returns an IP address in IPv6 notation.
func ipv6(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	return netip.AddrFrom16(addr.As16()).String()
}

// writeJSON answers v as JSON.
func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, encode(v))
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// encode returns the JSON of v, which must be of a type and value that has one.
func encode(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return body
}
