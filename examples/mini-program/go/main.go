// Command shop is the backend of a mini program. It logs users in, keeps their
// session keys, and asks WeChat for their phone numbers, and has no AppSecret: the
// calls that take it are made by Vault. Its policy is policies/mini-program.hcl.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
// WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
// WECHAT_MOUNT (wechat), WECHAT_URL (https://api.weixin.qq.com) and LISTEN
// (127.0.0.1:8080).
//
// The mini program sends JSON:
//
//	POST /login    {"code": of wx.login}                        gives a session
//	POST /phone    {"code": of a button with getPhoneNumber}    gives the number
//	POST /profile  {"rawData", "signature" of wx.getUserInfo}   is it WeChat's?
//
// the last two with the session as "Authorization: Bearer ...".
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // WeChat's choice
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

func main() {
	s := &shop{
		wechat: cmp.Or(os.Getenv("WECHAT_URL"), "https://api.weixin.qq.com"),
		account: &account{
			vault:      os.Getenv("VAULT_ADDR"),
			vaultToken: os.Getenv("VAULT_TOKEN"),
			namespace:  os.Getenv("VAULT_NAMESPACE"),
			mount:      cmp.Or(os.Getenv("WECHAT_MOUNT"), "wechat"),
			name:       os.Getenv("WECHAT_ACCOUNT"),
		},
		sessions: map[string]session{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", serve(s.login))
	mux.HandleFunc("POST /phone", serve(s.phone))
	mux.HandleFunc("POST /profile", serve(s.profile))

	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:8080"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}

// shop serves the mini program.
type shop struct {
	wechat  string
	account *account

	mu       sync.Mutex
	sessions map[string]session // by the session's ID; with several servers, in a store of theirs
}

// session is what is known of a user who has logged in. The session key stays here:
// its holder can pass for WeChat.
type session struct {
	openid, sessionKey string
	ends               time.Time
}

// sessionLife is for how long a login holds. The session key may end before: the
// mini program finds out with wx.checkSession, and logs in again.
const sessionLife = 2 * time.Hour

// login has Vault exchange the code of wx.login for the user's openid.
func (s *shop) login(ctx context.Context, r request) (any, error) {
	var user struct {
		OpenID     string `json:"openid"`
		SessionKey string `json:"session_key"`
	}
	body := map[string]any{"js_code": r.Code, "include_session_key": true}
	if err := s.account.ask(ctx, http.MethodPost, "code2session", body, &user); err != nil {
		// 400 is mostly the code's fault, 429 the user's, who logs in too often.
		if refusal, ok := errors.AsType[*refusal](err); ok && (refusal.status == http.StatusBadRequest || refusal.status == http.StatusTooManyRequests) {
			return nil, &failure{refusal.status, refusal.Error()}
		}
		return nil, err
	}
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.sessions, func(_ string, old session) bool { return now.After(old.ends) })
	s.sessions[id] = session{user.OpenID, user.SessionKey, now.Add(sessionLife)}
	return map[string]string{"session": id}, nil
}

// user returns the session of a request.
func (s *shop) user(r request) (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	user, known := s.sessions[r.session]
	if !known || time.Now().After(user.ends) {
		return session{}, &failure{http.StatusUnauthorized, "log in"}
	}
	return user, nil
}

// phone asks WeChat for the user's number, with the account's token.
func (s *shop) phone(ctx context.Context, r request) (any, error) {
	if _, err := s.user(r); err != nil {
		return nil, err
	}
	var answer struct {
		PhoneInfo struct {
			PhoneNumber string `json:"phoneNumber"`
		} `json:"phone_info"`
	}
	err := s.call(ctx, "/wxa/business/getuserphonenumber", map[string]string{"code": r.Code}, &answer)
	return map[string]string{"phone": answer.PhoneInfo.PhoneNumber}, err
}

// profile tells whether WeChat has signed what the mini program says of its user.
func (s *shop) profile(_ context.Context, r request) (any, error) {
	user, err := s.user(r)
	if err != nil {
		return nil, err
	}
	sum := sha1.Sum([]byte(r.RawData + user.sessionKey)) //nolint:gosec // WeChat's choice
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(r.Signature)) == 0 {
		return nil, &failure{http.StatusForbidden, "the signature is wrong"}
	}
	return map[string]bool{"genuine": true}, nil
}

// call calls an API of WeChat with the account's token. If WeChat rejects the token
// the call is repeated once, if Vault says that there is another.
func (s *shop) call(ctx context.Context, path string, body, answer any) error {
	for repeated := false; ; repeated = true {
		token, err := s.account.token(ctx)
		if err != nil {
			return err
		}
		var raw json.RawMessage
		address := s.wechat + path + "?access_token=" + url.QueryEscape(token)
		if err := exchange(ctx, http.MethodPost, address, nil, body, &raw); err != nil {
			return fmt.Errorf("asking WeChat: %w", err)
		}
		var result struct {
			Errcode int    `json:"errcode"`
			Errmsg  string `json:"errmsg"`
		}
		if err := json.Unmarshal(raw, &result); err != nil {
			return fmt.Errorf("asking WeChat: %w", err)
		}
		switch result.Errcode {
		case 0:
			return json.Unmarshal(raw, answer)
		case 40029: // the user's code is bad or used
			return &failure{http.StatusBadRequest, "the code is not good"}
		case 40001, 40014, 42001:
			if repeated {
				break
			}
			changed, err := s.account.rejected(ctx, token)
			if err != nil {
				return err
			}
			if changed {
				continue
			}
		}
		return fmt.Errorf("WeChat: errcode %d: %s", result.Errcode, result.Errmsg)
	}
}

// account is an account in Vault.
type account struct {
	vault, vaultToken, namespace, mount, name string

	mu        sync.Mutex // guards all below, and lets one request ask Vault for all
	current   string
	readAgain time.Time
}

// token returns a token that WeChat accepts, from memory while its ttl lasts.
func (a *account) token(ctx context.Context) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Now().Before(a.readAgain) {
		return a.current, nil
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		TTL         int    `json:"ttl"`
	}
	err := a.ask(ctx, http.MethodGet, "token", nil, &answer)
	switch {
	case err != nil && a.current == "":
		return "", err
	case err != nil:
		// The token is good for two minutes more: Vault may be back by then.
		log.Print(err)
		a.readAgain = time.Now().Add(5 * time.Second)
	default:
		a.current, a.readAgain = answer.AccessToken, time.Now().Add(time.Duration(answer.TTL)*time.Second)
	}
	return a.current, nil
}

// rejected reports a token that WeChat rejected, and tells whether there is another
// one.
func (a *account) rejected(ctx context.Context, token string) (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token != a.current {
		return true, nil // another request was here before
	}
	var answer struct {
		Changed bool `json:"changed"`
	}
	if err := a.ask(ctx, http.MethodPost, "refresh", map[string]string{"rejected_token": token}, &answer); err != nil {
		return false, err
	}
	if answer.Changed {
		a.readAgain = time.Time{}
	}
	return answer.Changed, nil
}

// ask sends a request about the account to Vault, and reads the answer's data.
func (a *account) ask(ctx context.Context, method, area string, body, data any) error {
	header := http.Header{"X-Vault-Token": {a.vaultToken}}
	if a.namespace != "" {
		header.Set("X-Vault-Namespace", a.namespace)
	}
	answer := struct {
		Data any `json:"data"`
	}{data}
	err := exchange(ctx, method, a.vault+"/v1/"+a.mount+"/"+area+"/"+a.name, header, body, &answer)
	if err != nil {
		return fmt.Errorf("asking Vault: %w", err)
	}
	return nil
}

var client = &http.Client{Timeout: 10 * time.Second}

// exchange sends a request with a JSON body, and reads the JSON answer.
func exchange(ctx context.Context, method, address string, header http.Header, body, answer any) error {
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, address, &sent)
	if err != nil {
		return errors.New("the address is not a URL") // err would show it, and the token in it
	}
	maps.Copy(req.Header, header)
	resp, err := client.Do(req)
	if err != nil {
		return errors.Unwrap(err) // err would show the URL, and the token in it
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var body struct {
			Errors []string `json:"errors"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&body) // the status says enough
		return &refusal{resp.StatusCode, body.Errors}
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// refusal is an answer of Vault or WeChat that is an HTTP error.
type refusal struct {
	status int
	errors []string
}

func (r *refusal) Error() string { return fmt.Sprintf("HTTP %d %q", r.status, r.errors) }

// failure is one that the mini program is told of.
type failure struct {
	status int
	reason string // for the log
}

func (f *failure) Error() string { return f.reason }

// request is what the mini program sends.
type request struct {
	session string

	Code      string `json:"code"`
	RawData   string `json:"rawData"`
	Signature string `json:"signature"`
}

// serve lets a function answer requests. Other errors than a failure are 503 to the
// mini program; the log has all reasons.
func serve(answer func(context.Context, request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&req); err != nil {
			http.Error(w, "the body is not JSON", http.StatusBadRequest)
			return
		}
		req.session, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		result, err := answer(r.Context(), req)
		if err != nil {
			log.Printf("%s: %q", r.Pattern, err) //nolint:gosec // quoted, it is one line whatever is in it
			status := http.StatusServiceUnavailable
			if f, ok := errors.AsType[*failure](err); ok {
				status = f.status
			}
			http.Error(w, http.StatusText(status), status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(result) // a client that is gone misses nothing
	}
}
