package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/silenceper/wechat/v2/credential"
)

// account is an account in Vault. It gives the SDK its access token and its JS
// ticket, so that the SDK is configured without an AppSecret.
type account struct {
	vault, vaultToken, namespace, mount, name string

	token, ticket kept
}

var (
	_ credential.AccessTokenContextHandle = (*account)(nil)
	_ credential.JsTicketContextHandle    = (*account)(nil)
)

// GetAccessToken implements [credential.AccessTokenHandle].
func (a *account) GetAccessToken() (string, error) {
	return a.GetAccessTokenContext(context.Background())
}

// GetAccessTokenContext implements [credential.AccessTokenContextHandle].
func (a *account) GetAccessTokenContext(ctx context.Context) (string, error) {
	return a.token.get(func(answer any) error { return a.ask(ctx, http.MethodGet, "token", nil, answer) })
}

// GetTicket implements [credential.JsTicketHandle].
func (a *account) GetTicket(token string) (string, error) {
	return a.GetTicketContext(context.Background(), token)
}

// GetTicketContext implements [credential.JsTicketContextHandle]. It needs no token:
// Vault fetches the ticket with its own.
func (a *account) GetTicketContext(ctx context.Context, _ string) (string, error) {
	return a.ticket.get(func(answer any) error { return a.ask(ctx, http.MethodGet, "ticket", nil, answer) })
}

// rejected reports the token that WeChat rejected: call it when the SDK's error
// is a CommonError with the code 40001, 40014 or 42001. If it returns true there is
// another token, and the call may be repeated once.
func (a *account) rejected(ctx context.Context, token string) (changed bool, err error) {
	if a.token.isOther(token) {
		return true, nil // another goroutine was here before
	}
	var answer struct {
		Changed bool `json:"changed"`
	}
	err = a.ask(ctx, http.MethodPost, "refresh", map[string]string{"rejected_token": token}, &answer)
	if answer.Changed {
		a.token.forget(token)
	}
	return answer.Changed, err
}

// kept is a value from Vault that is read again after its ttl.
type kept struct {
	mu        sync.Mutex // guards all below, and lets one goroutine ask Vault for all
	value     string
	readAgain time.Time
}

// get returns the value, from memory while its ttl lasts. When Vault fails the
// last value serves, for which Vault is asked again in five seconds.
func (k *kept) get(read func(answer any) error) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Now().Before(k.readAgain) {
		return k.value, nil
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		Ticket      string `json:"ticket"`
		TTL         int    `json:"ttl"`
	}
	switch err := read(&answer); {
	case err != nil && k.value == "":
		return "", err
	case err != nil:
		k.readAgain = time.Now().Add(5 * time.Second)
	default:
		k.value = answer.AccessToken + answer.Ticket // of which one is there
		k.readAgain = time.Now().Add(time.Duration(answer.TTL) * time.Second)
	}
	return k.value, nil
}

func (k *kept) isOther(value string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.value != value
}

// forget has the value read again, if it is still this one.
func (k *kept) forget(value string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.value == value {
		k.readAgain = time.Time{}
	}
}

var client = &http.Client{Timeout: 10 * time.Second}

// ask sends a request about the account to Vault, and reads the answer's data.
func (a *account) ask(ctx context.Context, method, area string, body, data any) error {
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.vault+"/v1/"+a.mount+"/"+area+"/"+a.name, &sent)
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", a.vaultToken)
	if a.namespace != "" {
		req.Header.Set("X-Vault-Namespace", a.namespace)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Data   any      `json:"data"`
		Errors []string `json:"errors"`
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("asking Vault: HTTP %d: %w", resp.StatusCode, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking Vault: HTTP %d: %q", resp.StatusCode, answer.Errors)
	}
	return nil
}
