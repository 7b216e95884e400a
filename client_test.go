package wechat

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// What the contract says of an answer and of what is shown of one, in bytes.
const (
	maxAnswer = 64 << 10
	maxShown  = 256
)

func testEndpoint() endpoint {
	return endpoint{
		Endpoint: upstream.Endpoint{BaseURL: testURL, Timeout: 5 * time.Second},
		rule:     ruleOf,
		appID:    testAppID, secret: testSecret,
	}
}

// overPipe runs test on a client whose every connection leads to handler, in a
// synctest bubble: nothing of it may be left running.
func overPipe(t *testing.T, handler http.Handler, test func(t *testing.T, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		defer wechatsim.Serve(pipe, handler)()
		c := &client{Client: upstream.Client{Dial: pipe.DialContext}}
		defer c.Close()
		test(t, c)
	})
}

// overSim is overPipe with the simulated WeChat, which knows testAppID.
func overSim(t *testing.T, test func(t *testing.T, c *client, sim *wechatsim.Sim)) {
	t.Helper()
	sim := newSim()
	overPipe(t, sim, func(t *testing.T, c *client) { test(t, c, sim) })
}

func newSim() *wechatsim.Sim {
	sim := wechatsim.New()
	sim.SetAccount(testAppID, wechatsim.Account{Secret: testSecret})
	return sim
}

// answering is a WeChat that answers every call alike.
func answering(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// requireProblem is the problem that err has to be.
func requireProblem(t *testing.T, g kept.Grant, err error) *problem {
	t.Helper()
	require.Zero(t, g)
	p, ok := err.(*problem) //nolint:errorlint // the client returns it bare
	require.True(t, ok, "%T: %v", err, err)
	return p
}

func TestTheRequestIsTheDocumentedOne(t *testing.T) {
	for name, c := range map[string]struct {
		baseURL string
		force   bool
		uri     string
	}{
		"normal":             {testURL, false, "/cgi-bin/stable_token"},
		"forced":             {testURL, true, "/cgi-bin/stable_token"},
		"base_url with path": {testURL + "/relay/wechat", false, "/relay/wechat/cgi-bin/stable_token"},
	} {
		t.Run(name, func(t *testing.T) {
			var got *http.Request
			var body []byte
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = r
				body, _ = io.ReadAll(r.Body)
				_, _ = io.WriteString(w, `{"access_token":"T","expires_in":7200}`)
			})
			overPipe(t, handler, func(t *testing.T, cl *client) {
				e := testEndpoint()
				e.BaseURL = c.baseURL
				_, err := stableToken(t.Context(), cl, e, input{force: c.force})
				require.NoError(t, err)
				require.Equal(t, http.MethodPost, got.Method)
				require.Equal(t, c.uri, got.RequestURI, "neither a query string nor another path")
				require.Equal(t, "application/json", got.Header.Get("Content-Type"))
				require.NotContains(t, fmt.Sprint(got.Header), testSecret)
				var fields map[string]any
				require.NoError(t, json.Unmarshal(body, &fields))
				require.Equal(t, map[string]any{
					"grant_type": "client_credential", "appid": testAppID, "secret": testSecret, "force_refresh": c.force,
				}, fields)
			})
		})
	}
}

func TestAGrantTellsWhatIsLeftSinceWhen(t *testing.T) {
	overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
		sim.SetLatency(2 * time.Second)
		start, steady := wallClock(), time.Now()
		first, err := stableToken(t.Context(), c, testEndpoint(), input{})
		require.NoError(t, err)
		require.Equal(t, kept.Grant{
			Value: sim.Current(testAppID), Life: 7200 * time.Second,
			Asked:    kept.Moment{Wall: start, Steady: steady, Era: era()},
			Answered: kept.Moment{Wall: start.Add(2 * time.Second), Steady: steady.Add(2 * time.Second), Era: era()},
		}, first)

		time.Sleep(1000 * time.Second)
		second, err := stableToken(t.Context(), c, testEndpoint(), input{})
		require.NoError(t, err)
		require.Equal(t, first.Value, second.Value)
		require.Equal(t, 6198*time.Second, second.Life)

		forced, err := stableToken(t.Context(), c, testEndpoint(), input{force: true})
		require.NoError(t, err)
		require.NotEqual(t, first.Value, forced.Value)
		require.True(t, sim.Calls("")[2].Forced)
	})
}

func TestEveryFaultIsOneNamedProblemAndOneCall(t *testing.T) {
	for name, c := range map[string]struct {
		fault  wechatsim.Fault
		class  class
		status int
		text   string // in the message or, of what is not WeChat's, in the server log
	}{
		"busy":                  {wechatsim.Fault{Kind: "errcode", Errcode: -1}, upstream.ClassTransient, 502, "errcode -1"},
		"refused credentials":   {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, upstream.ClassCredentials, 400, "errcode 40125"},
		"quota":                 {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, upstream.ClassQuota, 429, "errcode 45009"},
		"undocumented errcode":  {wechatsim.Fault{Kind: "errcode", Errcode: 12345, Errmsg: "odd"}, upstream.ClassAnswer, 502, "not documented (errcode 12345)"},
		"server error":          {wechatsim.Fault{Kind: "status", Status: 500}, upstream.ClassTransient, 502, "HTTP 500"},
		"unavailable":           {wechatsim.Fault{Kind: "status", Status: 503}, upstream.ClassTransient, 502, "HTTP 503"},
		"forbidden":             {wechatsim.Fault{Kind: "status", Status: 403}, upstream.ClassAnswer, 502, "HTTP 403"},
		"no content":            {wechatsim.Fault{Kind: "status", Status: 204}, upstream.ClassAnswer, 502, "HTTP 204"},
		"redirect":              {wechatsim.Fault{Kind: "redirect"}, upstream.ClassAnswer, 502, "redirects are refused"},
		"redirect to GET":       {wechatsim.Fault{Kind: "redirect", Status: 302}, upstream.ClassAnswer, 502, "redirects are refused"},
		"hang":                  {wechatsim.Fault{Kind: "hang"}, upstream.ClassUnreachable, 502, "no answer within 5s"},
		"reset":                 {wechatsim.Fault{Kind: "reset"}, upstream.ClassUnreachable, 502, "the connection ended"},
		"lost":                  {wechatsim.Fault{Kind: "lost"}, upstream.ClassUnreachable, 502, "the connection ended"},
		"truncated":             {wechatsim.Fault{Kind: "truncate"}, upstream.ClassUnreachable, 502, "the connection ended"},
		"oversized":             {wechatsim.Fault{Kind: "oversize"}, upstream.ClassAnswer, 502, "larger than 65536 bytes"},
		"not JSON":              {wechatsim.Fault{Kind: "notjson"}, upstream.ClassAnswer, 502, "not the JSON"},
		"no token":              {wechatsim.Fault{Kind: "notoken"}, upstream.ClassAnswer, 502, "no access_token"},
		"without expires_in":    {wechatsim.Fault{Kind: "expires_in"}, upstream.ClassAnswer, 502, "expires_in is 0"},
		"expires_in of zero":    {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "0"}, upstream.ClassAnswer, 502, "expires_in is 0"},
		"expires_in below zero": {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "-1"}, upstream.ClassAnswer, 502, "expires_in is -1"},
		"expires_in as a text":  {wechatsim.Fault{Kind: "expires_in", ExpiresIn: `"soon"`}, upstream.ClassAnswer, 502, "expires_in is not a whole number"},
		"expires_in as a float": {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "7200.5"}, upstream.ClassAnswer, 502, "expires_in is not a whole number"},
	} {
		for mode, force := range map[string]bool{"normal": false, "forced": true} {
			t.Run(name+", "+mode, func(t *testing.T) {
				overSim(t, func(t *testing.T, cl *client, sim *wechatsim.Sim) {
					// On a new connection, and on one that served a call before: net/http
					// must not repeat a call that WeChat may have acted on.
					for n, reused := range []bool{false, true} {
						if reused {
							sim.ClearFaults()
							_, err := stableToken(t.Context(), cl, testEndpoint(), input{})
							require.NoError(t, err)
						}
						sim.Inject(c.fault)
						before := len(sim.Calls(""))
						g, err := stableToken(t.Context(), cl, testEndpoint(), input{force: force})
						p := requireProblem(t, g, err)
						require.Equal(t, c.class, p.Class)
						require.Equal(t, c.status, p.Status)
						require.Contains(t, p.Message()+p.Cause, c.text)
						require.Contains(t, p.Error(), "; what to do: "+p.Advice)
						require.Len(t, sim.Calls(""), before+1, "round %d", n)
						require.NotContains(t, p.Error(), testSecret)
						if current := sim.Current(testAppID); current != "" {
							require.NotContains(t, p.Error(), current)
						}
					}
				})
			})
		}
	}
}

// A writer of accounts can have Vault's host call any address: only the server log tells
// what answers there.
func TestWhateverIsNotWeChatHasOnePhrase(t *testing.T) {
	good := `"access_token":"T","expires_in":7200`
	for name, c := range map[string]struct {
		status int
		body   string
		cause  string
		told   string
	}{
		"nothing there":      {404, "no such page", "HTTP 404", upstream.RuleAnswer.Meaning},
		"a login":            {401, "who are you?", "HTTP 401", upstream.RuleAnswer.Meaning},
		"created":            {201, "{" + good + "}", "HTTP 201", upstream.RuleAnswer.Meaning},
		"moved":              {301, "", "HTTP 301: redirects are refused", upstream.RuleAnswer.Meaning},
		"a page":             {200, "<html></html>", "it is not the JSON that WeChat documents", upstream.RuleAnswer.Meaning},
		"a large page":       {200, strings.Repeat("x", maxAnswer+1), "it is larger than 65536 bytes", upstream.RuleAnswer.Meaning},
		"other JSON":         {200, `{"status":"up"}`, "it holds no access_token", upstream.RuleAnswer.Meaning},
		"a number":           {200, `{"access_token":"T","expires_in":-777001}`, "expires_in is -777001", upstream.RuleAnswer.Meaning},
		"no number":          {200, `{"access_token":"T","expires_in":"soon"}`, "expires_in is not a whole number", upstream.RuleAnswer.Meaning},
		"an errcode in text": {200, `{"errcode":"none",` + good + "}", "errcode is not a number", upstream.RuleAnswer.Meaning},
		"unavailable":        {503, "", "HTTP 503", upstream.RuleUnavailable.Meaning},
		"broken":             {500, "{" + good + "}", "HTTP 500", upstream.RuleUnavailable.Meaning},
	} {
		t.Run(name, func(t *testing.T) {
			overPipe(t, answering(c.status, c.body), func(t *testing.T, cl *client) {
				g, err := stableToken(t.Context(), cl, testEndpoint(), input{})
				p := requireProblem(t, g, err)
				require.Equal(t, c.told, p.Message())
				require.Equal(t, c.told+"; what to do: "+p.Advice, p.OperatorError())
				require.Equal(t, c.cause, p.Cause)
			})
		})
	}
}

// An answer may hold what an errcode should keep it from holding, and at length.
func TestARefusalThatHoldsATokenIsNotQuoted(t *testing.T) {
	for _, field := range secretFields {
		for _, value := range []string{"T", strings.Repeat("0123456789abcdef", maxAnswer/16-16)} {
			raw := fmt.Appendf(nil, `{"errcode":40001,"errmsg":"here is %.32s rid: 1-2-3","%s":"%s"}`, value, field, value)
			require.LessOrEqual(t, len(raw), maxAnswer)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, p := testEndpoint().request(upstream.Request{API: apiStableToken}).Parse(http.StatusOK, raw)
			runtime.ReadMemStats(&after)
			require.Equal(t, 40001, p.Errcode)
			require.Empty(t, p.Errmsg+p.RID)
			require.False(t, p.HadNoEffect)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
		}
	}
}

func TestOnlyTheDocumentedAnswerIsAccepted(t *testing.T) {
	// padded is a good answer of exactly size bytes.
	padded := func(size int) string {
		const body = `{"access_token":"T","expires_in":7200}`
		return body + strings.Repeat(" ", size-len(body))
	}
	expires := func(raw string) string { return `{"access_token":"T","expires_in":` + raw + `}` }
	token := func(raw string) string { return `{"access_token":` + raw + `,"expires_in":7200}` }
	const good = 7200 * time.Second
	for name, c := range map[string]struct {
		body string
		want time.Duration // of life, 0 for an answer that is refused
	}{
		"as documented":                {expires("7200"), good},
		"ten seconds":                  {expires("10"), 10 * time.Second},
		"too short to be handed out":   {expires("1"), 0},
		"300 s":                        {expires("300"), 300 * time.Second},
		"7201 s":                       {expires("7201"), good},
		"more than fits a duration":    {expires("9223372037"), good},
		"the largest int64":            {expires("9223372036854775807"), good},
		"more than that":               {expires("9999999999999999999"), good},
		"in quotes":                    {expires(`"7200"`), good},
		"with a point":                 {expires("7200.0"), good},
		"with a point, in quotes":      {expires(`"300.00"`), 300 * time.Second},
		"a byte order mark before it":  {"\xef\xbb\xbf" + expires("7200"), good},
		"with an errcode of 0":         {`{"errcode":0,"errmsg":"ok","access_token":"T","expires_in":7200}`, good},
		"with an errcode of 0, quoted": {`{"errcode":"0","errmsg":"ok","access_token":"T","expires_in":7200}`, good},
		"with an errcode of null":      {`{"errcode":null,"errmsg":null,"access_token":"T","expires_in":7200}`, good},
		"with fields besides":          {`{"access_token":"T","expires_in":7200,"more":{"x":[1],"x":2}}`, good},
		"2 KiB of token":               {token(`"` + strings.Repeat("T", 2048) + `"`), good},
		"64 KiB with blanks":           {padded(maxAnswer), good},

		"2 KiB and one byte of token":        {token(`"` + strings.Repeat("T", 2049) + `"`), 0},
		"64 KiB and one blank":               {padded(maxAnswer + 1), 0},
		"zero":                               {expires("0"), 0},
		"negative":                           {expires("-7200"), 0},
		"as a fraction":                      {expires("0.5"), 0},
		"with an exponent":                   {expires("7.2e3"), 0},
		"with an exponent beyond reason":     {expires("1e999999999"), 0},
		"of a thousand digits":               {expires(strings.Repeat("9", 1000)), 0},
		"as another text":                    {expires(`"soon"`), 0},
		"with a blank":                       {expires(`"7200 "`), 0},
		"null":                               {expires("null"), 0},
		"an object":                          {expires("{}"), 0},
		"true":                               {expires("true"), 0},
		"missing":                            {`{"access_token":"T"}`, 0},
		"below the smallest int64":           {expires("-9223372036854775809"), 0},
		"empty token":                        {token(`""`), 0},
		"null token":                         {token(`null`), 0},
		"token of another type":              {token(`{"x":1}`), 0},
		"token with a line end":              {token(`"T\nLD_PRELOAD=x"`), 0},
		"token with a NUL":                   {token(`"T\u0000"`), 0},
		"token with a blank":                 {token(`"T T"`), 0},
		"token with a quote":                 {token(`"T\"T"`), 0},
		"token with another quote":           {token(`"T'T"`), 0},
		"token beyond ASCII":                 {token(`"Tö"`), 0},
		"token that is not UTF-8":            {token("\"T\xff\""), 0},
		"two tokens":                         {`{"access_token":"T","expires_in":7200,"access_token":"T2"}`, 0},
		"two tokens, one written in escapes": {`{"access_token":"T","expires_in":7200,"access_toke\u006e":"T2"}`, 0},
		"two errcodes":                       {`{"errcode":0,"access_token":"T","expires_in":7200,"errcode":40001}`, 0},
		"token in capitals":                  {`{"ACCESS_TOKEN":"T","expires_in":7200}`, 0},
		"token with an errcode":              {`{"errcode":-1,"errmsg":"no","access_token":"T","expires_in":7200}`, 0},
		"errcode of another type":            {`{"errcode":{},"access_token":"T","expires_in":7200}`, 0},
		"errcode beyond any number":          {`{"errcode":99999999999999999999,"access_token":"T","expires_in":7200}`, 0},
		"nothing":                            {``, 0},
		"a byte order mark alone":            {"\xef\xbb\xbf", 0},
		"JSON's null":                        {`null`, 0},
		"a list":                             {`[{"access_token":"T","expires_in":7200}]`, 0},
		"two answers":                        {expires("7200") + expires("7200"), 0},
		"half an answer":                     {expires("7200")[:30], 0},
		"nested beyond reason":               {`{"access_token":"T","expires_in":7200,"x":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			overPipe(t, answering(http.StatusOK, c.body), func(t *testing.T, cl *client) {
				g, err := stableToken(t.Context(), cl, testEndpoint(), input{})
				if c.want > 0 {
					require.NoError(t, err)
					require.Equal(t, c.want, g.Life)
					require.NotEmpty(t, g.Value)
					require.Empty(t, strings.Trim(g.Value, "T"))
					return
				}
				p := requireProblem(t, g, err)
				require.Equal(t, http.StatusBadGateway, p.Status)
				require.False(t, p.HadNoEffect, "a forced call may have replaced the token")
				require.NotContains(t, p.OperatorError(), "LD_PRELOAD")
			})
		})
	}
}

func TestAnErrcodeInQuotesIsOne(t *testing.T) {
	for name, body := range map[string]string{
		"number":         `{"errcode":40001,"errmsg":"invalid credential"}`,
		"in quotes":      `{"errcode":"40001","errmsg":"invalid credential"}`,
		"with a point":   `{"errcode":40001.0,"errmsg":"invalid credential"}`,
		"an odd errmsg":  `{"errcode":40001,"errmsg":{"text":"invalid credential"}}`,
		"without errmsg": `{"errcode":40001}`,
	} {
		t.Run(name, func(t *testing.T) {
			overPipe(t, answering(http.StatusOK, body), func(t *testing.T, c *client) {
				g, err := stableToken(t.Context(), c, testEndpoint(), input{force: true})
				p := requireProblem(t, g, err)
				require.Equal(t, 40001, p.Errcode)
				require.Equal(t, upstream.ClassCredentials, p.Class)
				require.True(t, p.HadNoEffect)
			})
		})
	}
}

// requireShowable holds a text to what may be shown of one from outside.
func requireShowable(t *testing.T, text string) {
	t.Helper()
	require.LessOrEqual(t, len(text), maxShown+len("…"))
	require.True(t, utf8.ValidString(text), "%q", text)
	require.Equal(t, -1, strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q holds characters that cannot be seen", text)
}

// otherCalls are those of every API but stable_token, each with a secret of its own in
// it besides the AppSecret.
var otherCalls = map[string]struct {
	api  string
	sent string // the code or the token that it carries
	call func(ctx context.Context, c *client, e endpoint) (any, error)
	good string // an answer that is taken
	want any
}{
	"code2session": {
		apiCode2Session, testCode,
		func(ctx context.Context, c *client, e endpoint) (any, error) {
			return c.codeToSession(ctx, e, testCode)
		},
		`{"session_key":"HyVFkGl5F5OQWJZZaNzBBg==","openid":"oUpF8uMuAJO_M2pxb1Q9zNjWeS6o","unionid":"o6_bmasdasdsad6_2sgVt7hMZOPfL"}`,
		&session{openID: "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o", unionID: "o6_bmasdasdsad6_2sgVt7hMZOPfL", sessionKey: "HyVFkGl5F5OQWJZZaNzBBg=="},
	},
	"oauth2": {
		apiOAuth2, testCode,
		func(ctx context.Context, c *client, e endpoint) (any, error) { return c.userToken(ctx, e, testCode) },
		`{"access_token":"ACCESS","expires_in":7200,"refresh_token":"REFRESH","openid":"OPENID","scope":"snsapi_login,snsapi_userinfo","is_snapshotuser":1,"unionid":"UNIONID"}`,
		&userToken{openID: "OPENID", unionID: "UNIONID", scope: "snsapi_login,snsapi_userinfo", accessToken: "ACCESS", refreshToken: "REFRESH", expiresIn: new(int64(7200)), snapshotUser: new(int64(1))},
	},
	"clear_quota": {
		apiClearQuota, "",
		func(ctx context.Context, c *client, e endpoint) (any, error) { return nil, c.clearQuota(ctx, e) },
		`{"errcode":0,"errmsg":"ok"}`, nil,
	},
	"getticket": {
		apiTicket, testTicketToken,
		func(ctx context.Context, c *client, e endpoint) (any, error) {
			return c.ticket(ctx, e, testTicketToken, "jsapi")
		},
		`{"errcode":0,"errmsg":"ok","ticket":"sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg","expires_in":7200}`,
		"sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg",
	},
}

// Neither is a code or a token that WeChat would give: they try the escaping.
const (
	testCode        = "0a1b&secret=x#2c 3d/4e?5f%20+6g"
	testTicketToken = "57_token&type=x#0123456789abcdef%2B+"
)

func TestTheOtherRequestsAreTheDocumentedOnes(t *testing.T) {
	type want struct {
		method, path string
		query        url.Values
		body         string
	}
	for name, w := range map[string]want{
		"code2session": {"GET", "/sns/jscode2session", url.Values{"appid": {testAppID}, "secret": {testSecret}, "js_code": {testCode}, "grant_type": {"authorization_code"}}, ""},
		"oauth2":       {"GET", "/sns/oauth2/access_token", url.Values{"appid": {testAppID}, "secret": {testSecret}, "code": {testCode}, "grant_type": {"authorization_code"}}, ""},
		"clear_quota":  {"POST", "/cgi-bin/clear_quota/v2", url.Values{}, `{"appid":"` + testAppID + `","appsecret":"` + testSecret + `"}`},
		"getticket":    {"GET", "/cgi-bin/ticket/getticket", url.Values{"access_token": {testTicketToken}, "type": {"jsapi"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := otherCalls[name]
			var got []want
			var framed []bool // the request is as long as it says, or has no body
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				got = append(got, want{r.Method, r.URL.Path, r.URL.Query(), string(body)})
				framed = append(framed, len(r.TransferEncoding) == 0 && r.ContentLength == int64(len(body)))
				_, _ = io.WriteString(w, c.good)
			})
			overPipe(t, handler, func(t *testing.T, cl *client) {
				answer, err := c.call(t.Context(), cl, testEndpoint())
				require.NoError(t, err)
				if g, ok := answer.(kept.Grant); ok {
					answer = g.Value
				}
				require.Equal(t, c.want, answer)
				require.Equal(t, []want{w}, got)
				require.Equal(t, []bool{true}, framed)
			})
		})
	}
}

func TestEveryFaultOfTheOtherCallsIsOneNamedProblemAndOneCall(t *testing.T) {
	for name, c := range otherCalls {
		for fault, f := range map[string]struct {
			fault    wechatsim.Fault
			class    class
			noEffect bool
		}{
			"busy":         {wechatsim.Fault{Kind: "errcode", Errcode: -1}, upstream.ClassTransient, false},
			"credentials":  {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, upstream.ClassCredentials, true},
			"undocumented": {wechatsim.Fault{Kind: "errcode", Errcode: 12345}, upstream.ClassAnswer, true},
			"server error": {wechatsim.Fault{Kind: "status", Status: 503}, upstream.ClassTransient, false},
			"forbidden":    {wechatsim.Fault{Kind: "status", Status: 403}, upstream.ClassAnswer, true},
			"redirect":     {wechatsim.Fault{Kind: "redirect", Status: 302}, upstream.ClassAnswer, false},
			"not JSON":     {wechatsim.Fault{Kind: "notjson"}, upstream.ClassAnswer, false},
			"hang":         {wechatsim.Fault{Kind: "hang"}, upstream.ClassUnreachable, false},
			"reset":        {wechatsim.Fault{Kind: "reset"}, upstream.ClassUnreachable, false},
			"lost":         {wechatsim.Fault{Kind: "lost"}, upstream.ClassUnreachable, false},
			"truncated":    {wechatsim.Fault{Kind: "truncate"}, upstream.ClassUnreachable, false},
			"oversized":    {wechatsim.Fault{Kind: "oversize"}, upstream.ClassAnswer, false},
			"drip":         {wechatsim.Fault{Kind: "drip"}, upstream.ClassUnreachable, false},
			"headers":      {wechatsim.Fault{Kind: "headers"}, upstream.ClassAnswer, false},
			"interim":      {wechatsim.Fault{Kind: "interim"}, upstream.ClassAnswer, false},
			"bomb":         {wechatsim.Fault{Kind: "gzip"}, upstream.ClassAnswer, false},
			"echo":         {wechatsim.Fault{Kind: "echo"}, upstream.ClassAnswer, true},
			"echo of 400":  {wechatsim.Fault{Kind: "echo", Status: 400}, upstream.ClassAnswer, true},
		} {
			t.Run(name+", "+fault, func(t *testing.T) {
				overSim(t, func(t *testing.T, cl *client, sim *wechatsim.Sim) {
					f.fault.API = wechatsim.AllAPIs
					// On a new connection, and on one that served a call before: net/http
					// must not repeat a call that WeChat may have acted on.
					for range 2 {
						sim.Inject(f.fault)
						before := len(sim.CallsOf(c.api, ""))
						_, err := c.call(t.Context(), cl, testEndpoint())
						p := problemOf(err)
						require.NotNil(t, p, "%v", err)
						require.Equal(t, f.class, p.Class, p.Cause)
						require.Equal(t, f.noEffect, p.HadNoEffect)
						require.Len(t, sim.CallsOf(c.api, ""), before+1)
						for _, text := range []string{p.Detail, p.Cause, p.RID, p.Errmsg} {
							requireShowable(t, text)
						}
						for _, text := range []string{p.Error(), p.OperatorError(), p.Cause} {
							requireNoPieceOf(t, text, testSecret, c.sent)
						}
						sim.ClearFaults()
						_, err = stableToken(t.Context(), cl, testEndpoint(), input{})
						require.NoError(t, err)
						_, _ = c.call(t.Context(), cl, testEndpoint()) // whatever comes of it, the connection stays
					}
				})
			})
		}
	}
}

// requireNoPieceOf holds a text to holding no piece of the secrets, however it is
// encoded.
func requireNoPieceOf(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		for _, form := range []string{
			secret, url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
			base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
		} {
			for i := range len(form) - 8 + 1 {
				require.NotContains(t, text, form[i:i+8])
			}
		}
	}
}

func TestOnlyTheOtherDocumentedAnswersAreTaken(t *testing.T) {
	const long = upstream.MaxValue + 1
	for name, c := range otherCalls {
		// fields are those without which an answer is not the documented one, and
		// those that may be missing.
		fields := map[string]struct{ needed, optional []string }{
			"code2session": {[]string{"openid", "session_key"}, []string{"unionid"}},
			"oauth2":       {[]string{"openid", "access_token"}, []string{"unionid", "scope", "refresh_token"}},
			"clear_quota":  {},
			"getticket":    {[]string{"ticket"}, nil},
		}[name]
		taken := func(t *testing.T, body string) error {
			var err error
			overPipe(t, answering(http.StatusOK, body), func(t *testing.T, cl *client) {
				_, err = c.call(t.Context(), cl, testEndpoint())
			})
			return err
		}
		with := func(field string, value any) string {
			var answer map[string]any
			require.NoError(t, json.Unmarshal([]byte(c.good), &answer))
			answer[field] = value
			raw, err := json.Marshal(answer)
			require.NoError(t, err)
			return string(raw)
		}
		t.Run(name, func(t *testing.T) {
			require.NoError(t, taken(t, c.good))
			require.NoError(t, taken(t, "\xef\xbb\xbf"+c.good), "a byte order mark")
			require.NoError(t, taken(t, with("errcode", "0")), "an errcode in quotes")
			require.NoError(t, taken(t, with("more", []any{1, map[string]any{"x": 2}})), "more fields")
			for _, body := range []string{"", "{}", "null", "[]", `"` + c.good + `"`, c.good + c.good, c.good[:len(c.good)-1]} {
				p := problemOf(taken(t, body))
				require.NotNil(t, p, body)
				require.Equal(t, upstream.ClassAnswer, p.Class)
			}
			for _, field := range append(fields.needed, fields.optional...) {
				for kind, bad := range map[string]any{
					"a line end": "a\nb", "a blank": "a b", "a quote": `a"b`, "another": "a'b", "a back quote": "a`b", "beyond ASCII": "ä", "too long": strings.Repeat("a", long),
					"a number": 1, "a list": []any{"a"}, "an object": map[string]any{}, "a bool": true, "direction": "a\u202eb", "NUL": "a\x00",
				} {
					p := problemOf(taken(t, with(field, bad)))
					require.NotNil(t, p, "%s with %s", field, kind)
					require.Equal(t, upstream.ClassAnswer, p.Class)
					require.Equal(t, upstream.RuleAnswer.Meaning+"; what to do: "+p.Advice, p.OperatorError())
					require.Contains(t, p.Cause, field)
				}
				require.NoError(t, taken(t, with(field, strings.Repeat("a", upstream.MaxValue))))
			}
			for _, field := range fields.needed {
				for _, missing := range []any{nil, ""} {
					require.Contains(t, problemOf(taken(t, with(field, missing))).Cause, "it holds no "+field)
				}
			}
			for _, field := range fields.optional {
				for _, missing := range []any{nil, ""} {
					require.NoError(t, taken(t, with(field, missing)))
				}
			}
		})
	}
	t.Run("numbers of oauth2", func(t *testing.T) {
		for body, ok := range map[string]bool{
			`{"openid":"O","access_token":"A"}`: true, `{"openid":"O","access_token":"A","expires_in":"7200","is_snapshotuser":"0"}`: true,
			`{"openid":"O","access_token":"A","expires_in":0}`: false, `{"openid":"O","access_token":"A","expires_in":-1}`: false,
			`{"openid":"O","access_token":"A","expires_in":"soon"}`: false, `{"openid":"O","access_token":"A","is_snapshotuser":true}`: false,
		} {
			overPipe(t, answering(http.StatusOK, body), func(t *testing.T, cl *client) {
				_, err := cl.userToken(t.Context(), testEndpoint(), testCode)
				require.Equal(t, ok, err == nil, body)
			})
		}
	})
}

// Where WeChat reads no body, the query follows: what says that it saw nothing did
// nothing.
func TestTheQuotaIsClearedInWhicheverWayWeChatReads(t *testing.T) {
	for name, c := range map[string]struct {
		errcodes []int // of the answers, one after the other
		calls    int
		want     int // the errcode that is told
	}{
		"the body is read":              {[]int{0}, 1, 0},
		"the query is read":             {[]int{41002, 0}, 2, 0},
		"no secret is seen in the body": {[]int{41004, 0}, 2, 0},
		"neither is":                    {[]int{41002, 41002}, 2, 41002},
		"refused":                       {[]int{48006}, 1, 48006},
		"refused in the query":          {[]int{41002, 40125}, 2, 40125},
	} {
		t.Run(name, func(t *testing.T) {
			var uris []string
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = fmt.Fprintf(w, `{"errcode":%d,"errmsg":"no"}`, c.errcodes[len(uris)])
				uris = append(uris, r.RequestURI)
			})
			overPipe(t, handler, func(t *testing.T, cl *client) {
				err := cl.clearQuota(t.Context(), testEndpoint())
				require.Equal(t, c.want != 0, err != nil, err)
				if c.want != 0 {
					require.Equal(t, c.want, problemOf(err).Errcode)
				}
				require.Equal(t, []string{"/cgi-bin/clear_quota/v2", "/cgi-bin/clear_quota/v2?appid=" + testAppID + "&appsecret=" + testSecret}[:c.calls], uris)
			})
		})
	}
}

func TestEveryCallIsCountedOnce(t *testing.T) {
	overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
		var seen []upstream.Observed
		c.Observe = func(call upstream.Observed) { seen = append(seen, call) }
		sim.SetLatency(100 * time.Millisecond)

		_, err := stableToken(t.Context(), c, testEndpoint(), input{})
		require.NoError(t, err)
		_, err = c.codeToSession(t.Context(), testEndpoint(), "unknown")
		require.Error(t, err)
		require.NoError(t, c.clearQuota(t.Context(), testEndpoint()))
		_, err = c.ticket(t.Context(), testEndpoint(), "unknown", "jsapi")
		require.Error(t, err)
		sim.Inject(wechatsim.Fault{API: wechatsim.APIOAuth2, Kind: "hang"})
		_, err = c.userToken(t.Context(), testEndpoint(), "unknown")
		require.Error(t, err)
		sim.Inject(wechatsim.Fault{Kind: "notoken"})
		_, err = stableToken(t.Context(), c, testEndpoint(), input{})
		require.Error(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = stableToken(ctx, c, testEndpoint(), input{})
		require.Equal(t, context.DeadlineExceeded, err)
		const took = 100 * time.Millisecond
		require.Equal(t, []upstream.Observed{
			{API: apiStableToken, Errcode: 0, Result: "ok", Duration: took},
			{API: apiCode2Session, Errcode: 40029, Result: "code", Duration: took},
			{API: apiClearQuota, Errcode: 0, Result: "ok", Duration: took},
			{API: apiTicket, Errcode: 40014, Result: "rejected token", Duration: took},
			{API: apiOAuth2, Errcode: 0, Result: "unreachable", Duration: 5 * time.Second},
			{API: apiStableToken, Errcode: 0, Result: "undocumented answer", Duration: took},
			{API: apiStableToken, Errcode: 0, Result: "cancelled", Duration: 50 * time.Millisecond},
		}, seen)
	})
}

// The account of a way may be deleted, or go another way.
func TestATransportGoesWithItsAccount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		kept := m.keeper.client.Ways
		for n := range 5 {
			m.ok(logical.UpdateOperation, "config/goes", account1(map[string]any{
				"base_url": "https://192.0.2.1", "proxy_url": fmt.Sprintf("http://127.0.0.1:%d", 3000+n), "verify": false,
			}))
			m.refused(logical.ReadOperation, "token/goes", nil)
		}
		require.Equal(t, 5, kept())
		m.ok(logical.DeleteOperation, "config/goes", nil)
		m.ticks(2)
		require.Zero(t, kept())
	})
}
