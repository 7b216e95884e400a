// Command shop calls WeChat with a token from Vault, once for each line that it
// reads. The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
// WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
// WECHAT_MOUNT (wechat) and WECHAT_URL (https://api.weixin.qq.com).
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

func main() {
	s := &shop{
		wechat: cmp.Or(os.Getenv("WECHAT_URL"), "https://api.weixin.qq.com"),
		tokens: &tokens{
			vault:      os.Getenv("VAULT_ADDR"),
			vaultToken: os.Getenv("VAULT_TOKEN"),
			namespace:  os.Getenv("VAULT_NAMESPACE"),
			mount:      cmp.Or(os.Getenv("WECHAT_MOUNT"), "wechat"),
			account:    os.Getenv("WECHAT_ACCOUNT"),
		},
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if ips, err := s.callbackIPs(context.Background()); err != nil {
			fmt.Println("failed:", err)
		} else {
			fmt.Println("ok:", len(ips), "addresses")
		}
	}
}

// shop calls WeChat.
type shop struct {
	wechat string
	tokens *tokens
}

// callbackIPs stands for any call. One that WeChat answers with a rejection of
// the token is repeated once, if Vault says that there is another token.
func (s *shop) callbackIPs(ctx context.Context) ([]string, error) {
	for repeated := false; ; repeated = true {
		token, err := s.tokens.get(ctx)
		if err != nil {
			return nil, err
		}
		var answer struct {
			Errcode int      `json:"errcode"`
			Errmsg  string   `json:"errmsg"`
			IPs     []string `json:"ip_list"`
		}
		if err := call(ctx, http.MethodGet, s.wechat+"/cgi-bin/getcallbackip?access_token="+url.QueryEscape(token), nil, nil, &answer); err != nil {
			return nil, fmt.Errorf("asking WeChat: %w", err)
		}
		switch answer.Errcode {
		case 0:
			return answer.IPs, nil
		case 40001, 40014, 42001:
			if repeated {
				break
			}
			changed, err := s.tokens.rejected(ctx, token)
			if err != nil {
				return nil, err
			}
			if changed {
				continue
			}
		}
		return nil, fmt.Errorf("WeChat: errcode %d: %s", answer.Errcode, answer.Errmsg)
	}
}

// tokens hands out the access token of an account, for any number of goroutines.
type tokens struct {
	vault, vaultToken, namespace, mount, account string

	mu        sync.Mutex // guards all below, and lets one goroutine ask Vault for all
	token     string
	readAgain time.Time
}

// get returns a token that WeChat accepts, from memory while its ttl lasts.
func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.readAgain) {
		return t.token, nil
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		TTL         int    `json:"ttl"`
	}
	err := t.ask(ctx, http.MethodGet, "token", nil, &answer)
	switch {
	case err != nil && t.token == "":
		return "", err
	case err != nil:
		// The token is good for two minutes more: Vault may be back by then.
		log.Print(err)
		t.readAgain = time.Now().Add(5 * time.Second)
	default:
		t.token, t.readAgain = answer.AccessToken, time.Now().Add(time.Duration(answer.TTL)*time.Second)
	}
	return t.token, nil
}

// rejected reports a token that WeChat rejected. If there is another one it
// returns true; otherwise WeChat has no newer one: the fault lies elsewhere,
// or is over in half a minute, after which the call may be repeated once.
func (t *tokens) rejected(ctx context.Context, token string) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token != t.token {
		return true, nil // another goroutine was here before
	}
	var answer struct {
		Changed bool `json:"changed"`
	}
	if err := t.ask(ctx, http.MethodPost, "refresh", map[string]string{"rejected_token": token}, &answer); err != nil {
		return false, err
	}
	if answer.Changed {
		t.readAgain = time.Time{}
	}
	return answer.Changed, nil
}

// ask sends a request about the account to Vault, and reads the answer's data.
func (t *tokens) ask(ctx context.Context, method, area string, body, data any) error {
	answer := struct {
		Data any `json:"data"`
	}{data}
	header := http.Header{"X-Vault-Token": {t.vaultToken}}
	if t.namespace != "" {
		header.Set("X-Vault-Namespace", t.namespace)
	}
	if err := call(ctx, method, t.vault+"/v1/"+t.mount+"/"+area+"/"+t.account, header, body, &answer); err != nil {
		return fmt.Errorf("asking Vault: %w", err)
	}
	return nil
}

var client = &http.Client{Timeout: 10 * time.Second}

// call sends a request with a JSON body, and reads the JSON answer.
func call(ctx context.Context, method, address string, header http.Header, body, answer any) error {
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
		var refusal struct {
			Errors []string `json:"errors"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&refusal) // the status says enough
		return fmt.Errorf("HTTP %d %q", resp.StatusCode, refusal.Errors)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}
