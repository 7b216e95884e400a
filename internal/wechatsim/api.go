package wechatsim

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
)

// The names of WeChat's APIs in [Call], [Fault] and wherever else one is named.
const (
	APIToken        = "stable_token"       // POST /cgi-bin/stable_token
	APICode2Session = "jscode2session"     // GET /sns/jscode2session
	APIOAuth2       = "oauth2"             // GET /sns/oauth2/access_token
	APIClearQuota   = "clear_quota"        // POST /cgi-bin/clear_quota/v2
	APITicket       = "getticket"          // GET /cgi-bin/ticket/getticket
	APIRid          = "rid"                // POST /cgi-bin/openapi/rid/get
	APIPhoneNumber  = "getuserphonenumber" // POST /wxa/business/getuserphonenumber
	APICallbackIP   = "getcallbackip"      // GET /cgi-bin/getcallbackip

	AllAPIs = "*" // stands for all of them
)

const maxBody = 64 << 10 // of a request, in bytes

// api is one of WeChat's APIs.
type api struct {
	path string

	// query and body say where it takes its parameters from; a body is JSON.
	query, body bool

	// work answers a call by the platform's rules, and says whether it issued
	// something: a token, a ticket, a session. s.mu is held.
	work func(s *Sim, req *request) (_ answer, issued bool)
}

// apis are WeChat's APIs by their names.
var apis = map[string]api{
	APIToken:        {"/cgi-bin/stable_token", false, true, (*Sim).stableToken},
	APICode2Session: {"/sns/jscode2session", true, false, (*Sim).code2Session},
	APIOAuth2:       {"/sns/oauth2/access_token", true, false, (*Sim).oauth2},
	APIClearQuota:   {"/cgi-bin/clear_quota/v2", true, true, (*Sim).clearQuota},
	APITicket:       {"/cgi-bin/ticket/getticket", true, false, (*Sim).getTicket},
	APIRid:          {"/cgi-bin/openapi/rid/get", true, true, (*Sim).lookUpRid},
	APIPhoneNumber:  {"/wxa/business/getuserphonenumber", true, true, (*Sim).phoneNumber},
	APICallbackIP:   {"/cgi-bin/getcallbackip", true, false, (*Sim).callbackIP},
}

// request is a call as it came in. Its fields with a JSON name are the parameters
// of all APIs together; each API looks at its own.
type request struct {
	GrantType    string `json:"grant_type"`
	AppID        string `json:"appid"` // of a call with a token: that of the token's account
	Secret       string `json:"secret"`
	AppSecret    string `json:"appsecret"` // the AppSecret, as clear_quota calls it
	ForceRefresh bool   `json:"force_refresh"`
	Code         string `json:"code"` // js_code of jscode2session
	Type         string `json:"-"`
	Rid          string `json:"rid"`
	AccessToken  string `json:"-"`

	api      string // its name
	method   string
	url      string // path and query
	raw      []byte // the body
	badBody  bool   // the body is not the JSON that it should be
	ip       string // of the caller
	unforced bool   // a forced call is to refresh nothing
}

// serve answers the calls of an API.
func (s *Sim) serve(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 { // seen of WeChat: it wants a Content-Length
			writePage(w, http.StatusPreconditionFailed)
			return
		}
		req := parseRequest(name, r)
		ans, fault := s.call(r.Context(), req)
		kinds[fault.Kind].deliver(w, r, fault, ans)
	}
}

// parseRequest reads a call to the end, so that the server notices when the client
// gives up. The body can be read once more.
func parseRequest(name string, r *http.Request) *request {
	req := &request{api: name, method: r.Method, url: r.URL.RequestURI(), ip: callerIP(r)}
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	r.Body = io.NopCloser(bytes.NewReader(raw))
	req.raw = raw
	if apis[name].query {
		req.parseQuery(r.URL.Query())
	}
	if apis[name].body {
		req.badBody = err != nil || json.Unmarshal(raw, req) != nil
	}
	return req
}

func (req *request) parseQuery(query url.Values) {
	req.GrantType = query.Get("grant_type")
	req.AppID = query.Get("appid")
	req.Secret = query.Get("secret")
	req.AppSecret = query.Get("appsecret")
	req.Code = query.Get("code")
	if req.api == APICode2Session {
		req.Code = query.Get("js_code")
	}
	req.Type = query.Get("type")
	req.AccessToken = query.Get("access_token")
}

// countedAs returns the keys under which a call is counted.
func (req *request) countedAs() []counted {
	keys := []counted{{req.api, ""}, {AllAPIs, ""}}
	if req.AppID != "" {
		keys = append(keys, counted{req.api, req.AppID}, counted{AllAPIs, req.AppID})
	}
	return keys
}

// callerIP returns the host of the remote address.
func callerIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
