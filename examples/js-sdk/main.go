// Command shop serves a page that uses WeChat's JS-SDK. The signature that the page
// needs for wx.config comes from Vault, where the account's ticket stays. Its policy
// is policies/page-server.hcl.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN, the account's name as
// WECHAT_ACCOUNT and where the page is found as ORIGIN (https://shop.example.com);
// where they differ from the default, VAULT_NAMESPACE (none), WECHAT_MOUNT (wechat),
// WECHAT_JSSDK (the address of WeChat's script) and LISTEN (127.0.0.1:8080).
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

func main() {
	s := &server{
		vault:      os.Getenv("VAULT_ADDR"),
		vaultToken: os.Getenv("VAULT_TOKEN"),
		namespace:  os.Getenv("VAULT_NAMESPACE"),
		mount:      cmp.Or(os.Getenv("WECHAT_MOUNT"), "wechat"),
		account:    os.Getenv("WECHAT_ACCOUNT"),
		origin:     os.Getenv("ORIGIN"),
		sdk:        cmp.Or(os.Getenv("WECHAT_JSSDK"), "https://res.wx.qq.com/open/js/jweixin-1.6.0.js"),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", s.page)
	mux.HandleFunc("GET /signature", s.signature)

	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:8080"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}

// server serves the page and its signatures.
type server struct {
	vault, vaultToken, namespace, mount, account string
	origin, sdk                                  string
}

func (s *server) page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, map[string]string{"SDK": s.sdk}); err != nil {
		log.Print(err)
	}
}

// signature answers what wx.config wants. It signs the addresses of this site only,
// so that no other site can have its pages signed.
func (s *server) signature(w http.ResponseWriter, r *http.Request) {
	address := r.URL.Query().Get("url")
	if !strings.HasPrefix(address, s.origin+"/") {
		http.Error(w, "the page is not of this site", http.StatusForbidden)
		return
	}
	signed, err := s.sign(r.Context(), address)
	if err != nil {
		log.Print(err)
		http.Error(w, "no signature", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(signed) // a client that is gone misses nothing
}

// signature is what wx.config wants, under its names.
type signature struct {
	AppID     string `json:"appId"`
	Timestamp int64  `json:"timestamp"`
	NonceStr  string `json:"nonceStr"`
	Signature string `json:"signature"`
}

var client = &http.Client{Timeout: 10 * time.Second}

// sign asks Vault, by a read with the address in the query: an update would do, too,
// but costs Vault more.
func (s *server) sign(ctx context.Context, address string) (*signature, error) {
	target := s.vault + "/v1/" + s.mount + "/sign/" + s.account + "?" + url.Values{"url": {address}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", s.vaultToken)
	if s.namespace != "" {
		req.Header.Set("X-Vault-Namespace", s.namespace)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking Vault: %w", err)
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			AppID     string `json:"appid"`
			Timestamp int64  `json:"timestamp"`
			NonceStr  string `json:"noncestr"`
			Signature string `json:"signature"`
		} `json:"data"`
		Errors   []string `json:"errors"`
		Warnings []string `json:"warnings"` // the ticket is the last one, since WeChat fails
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("asking Vault: HTTP %d: %w", resp.StatusCode, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking Vault: HTTP %d %q", resp.StatusCode, answer.Errors)
	}
	for _, warning := range answer.Warnings {
		log.Print(warning)
	}
	if answer.Data.Signature == "" {
		return nil, errors.New("asking Vault: the answer has no signature")
	}
	return &signature{answer.Data.AppID, answer.Data.Timestamp, answer.Data.NonceStr, answer.Data.Signature}, nil
}
