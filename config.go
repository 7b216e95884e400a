package wechat

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	defaultBaseURL        = "https://api.weixin.qq.com"
	defaultRequestTimeout = 5 * time.Second
	defaultSyncInterval   = 5 * time.Minute
	defaultMaxTTL         = 4 * time.Minute

	maxRequestTimeout = 30 * time.Second

	maxDuration   = 24 * time.Hour
	maxCredential = 256      // characters of an appid or a secret
	maxURL        = 2 << 10  // bytes of base_url or proxy_url
	maxCAPEM      = 64 << 10 // bytes
)

// config is the configuration of one account, as it is stored.
type config struct {
	Version int `json:"version"`

	// ID binds a stored token to this account: it changes whenever the account
	// becomes another one, and a token that names another ID is never served.
	ID string `json:"id"`

	// Credentials changes with what WeChat is asked with: a token that names it shows
	// that WeChat has accepted that.
	Credentials string `json:"credentials"`

	AppID          string        `json:"appid"`
	Secret         string        `json:"secret"`
	SecretSetTime  time.Time     `json:"secret_set_time"`
	BaseURL        string        `json:"base_url"`
	ProxyURL       string        `json:"proxy_url,omitempty"`
	CAPEM          string        `json:"ca_pem,omitempty"`
	RequestTimeout time.Duration `json:"request_timeout"` // nanoseconds, like the two below
	SyncInterval   time.Duration `json:"sync_interval"`
	MaxTTL         time.Duration `json:"max_ttl"`

	// Written is read back: clients compare it with what they wrote, and would take
	// another form of it for a change.
	Written written `json:"written,omitzero"`
}

// written is what a write said, where the engine uses an equal form of it. A field is
// empty if there is no other form.
type written struct {
	BaseURL string `json:"base_url,omitempty"`
	CAPEM   string `json:"ca_pem,omitempty"`
}

// newConfig holds the defaults.
func newConfig() *config {
	return &config{
		Version:        schemaVersion,
		BaseURL:        defaultBaseURL,
		RequestTimeout: defaultRequestTimeout,
		SyncInterval:   defaultSyncInterval,
		MaxTTL:         defaultMaxTTL,
	}
}

func (cfg *config) endpoint() endpoint {
	return endpoint{
		appID: cfg.AppID, secret: cfg.Secret,
		baseURL: cfg.BaseURL, proxy: cfg.ProxyURL, caPEM: cfg.CAPEM,
		timeout: cfg.RequestTimeout,
	}
}

// host is where the calls of the account go first, to its proxy or its upstream: those
// who share it are slow together. Ports do not tell hosts apart.
func (cfg *config) host() string {
	way := cfg.BaseURL
	if cfg.ProxyURL != "" {
		way = cfg.ProxyURL
	}
	u, err := url.Parse(way)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

// update returns the account with the fields that data names changed, cfg
// being nil where there is none yet. It validates everything and leaves cfg
// as it is. A change that makes it another account gives it a new ID.
func (cfg *config) update(data *framework.FieldData) (*config, error) {
	next := newConfig()
	if cfg != nil {
		*next = *cfg
	}
	if err := errors.Join(next.setCredentials(data), next.setRoute(data), next.setTimes(data)); err != nil {
		return nil, err
	}
	switch {
	case next.AppID == "" && cfg == nil:
		return nil, errors.New("appid is required: there is no account of this name yet; check the name, or write the new account's appid and secret")
	case next.AppID == "":
		return nil, errors.New("appid is required: write the account's AppID")
	case next.Secret == "":
		return nil, errors.New("secret is required: write the account's AppSecret")
	}
	if cfg != nil && !sets(data, "secret") {
		// Whatever the value: to say only that it is another one would be to say when
		// somebody has guessed the proxy's password.
		for _, field := range []string{"base_url", "proxy_url", "ca_pem"} {
			if sets(data, field) {
				return nil, fmt.Errorf("%s decides where the stored secret is sent: write secret in the same request", field)
			}
		}
	}
	if next.ProxyURL != "" && strings.HasPrefix(next.BaseURL, "http:") {
		return nil, errors.New("proxy_url would send the secret in the clear to an http base_url, which is on this machine: write one of the two without the other")
	}
	if cfg == nil || next.AppID != cfg.AppID || next.BaseURL != cfg.BaseURL || next.CAPEM != cfg.CAPEM {
		next.ID = randomText()
	}
	if cfg == nil || next.ID != cfg.ID || next.Secret != cfg.Secret {
		next.Credentials = randomText()
	}
	return next, nil
}

// sets reports whether the request names one of the fields.
func sets(data *framework.FieldData, fields ...string) bool {
	for _, f := range fields {
		if _, ok := data.Raw[f]; ok {
			return true
		}
	}
	return false
}

func (cfg *config) setCredentials(data *framework.FieldData) error {
	if sets(data, "appid") {
		cfg.AppID = data.Get("appid").(string)
		if err := checkCredential("appid", cfg.AppID); err != nil {
			return err
		}
		if strings.HasPrefix(cfg.AppID, "gh_") {
			return errors.New("appid is the account's original ID (原始 ID), which begins with gh_: write its AppID, which begins with wx and is shown in the account's console beside the AppSecret")
		}
	}
	if sets(data, "secret") {
		cfg.Secret = data.Get("secret").(string)
		cfg.SecretSetTime = wallClock().UTC().Truncate(time.Second)
		return checkCredential("secret", cfg.Secret)
	}
	return nil
}

func checkCredential(field, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is empty: write the value shown in the account's console", field)
	case len(value) > maxCredential:
		return fmt.Errorf("%s is longer than %d characters: write the value shown in the account's console", field, maxCredential)
	}
	for _, r := range value {
		if r > unicode.MaxASCII || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return fmt.Errorf("%s holds white space or a character that none can have: check for a line end at its end", field)
		}
	}
	return nil
}

func (cfg *config) setRoute(data *framework.FieldData) error {
	if sets(data, "base_url") {
		raw := data.Get("base_url").(string)
		normal, err := normalizeBaseURL(raw)
		if err != nil {
			return err
		}
		cfg.BaseURL, cfg.Written.BaseURL = normal, otherForm(raw, normal)
	}
	if sets(data, "proxy_url") {
		cfg.ProxyURL = data.Get("proxy_url").(string)
		if err := checkProxyURL(cfg.ProxyURL); err != nil {
			return err
		}
	}
	if sets(data, "ca_pem") {
		raw := data.Get("ca_pem").(string)
		roots, err := normalizeCAPEM(strings.TrimSpace(raw))
		cfg.CAPEM, cfg.Written.CAPEM = roots, ""
		if withoutSpace(raw) == withoutSpace(roots) { // words around the certificates are not kept
			cfg.Written.CAPEM = otherForm(raw, roots)
		}
		return err
	}
	return nil
}

// otherForm returns raw if it is another form of normal.
func otherForm(raw, normal string) string {
	if raw == normal {
		return ""
	}
	return raw
}

func withoutSpace(text string) string { return strings.Join(strings.Fields(text), "") }

// normalizeBaseURL validates a base_url and returns it without a trailing
// slash. An empty one stands for the default.
func normalizeBaseURL(raw string) (string, error) {
	if raw == "" {
		return defaultBaseURL, nil
	}
	if len(raw) > maxURL {
		return "", fmt.Errorf("base_url is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "" || !validPort(u):
		return "", errors.New("base_url is not a URL: write one like https://api.weixin.qq.com")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return "", errors.New("base_url must have no user, query or fragment: write scheme, host, and port and path where needed")
	case u.Scheme == "https":
	case u.Scheme == "http" && isLoopback(u.Hostname()):
	default:
		return "", errors.New("base_url must use https; http is for 127.0.0.0/8, ::1 and localhost only")
	}
	u.Host = strings.ToLower(u.Host)
	path := strings.TrimRight(u.Path, "/")
	if path != "" && strings.HasSuffix(u.Hostname(), ".weixin.qq.com") || endsInAPI(path) {
		return "", errors.New("base_url holds a path of WeChat's API, which the engine appends to it: write only what comes before, such as https://api.weixin.qq.com")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// endsInAPI reports whether the path of a base_url ends in one of WeChat's API. A relay
// may have a path of its own, also below a cgi-bin.
func endsInAPI(path string) bool {
	for _, api := range []string{"/cgi-bin", "/cgi-bin/token", "/cgi-bin/stable_token", "/sns", "/sns/jscode2session", "/sns/oauth2/access_token"} {
		if strings.HasSuffix(path, api) {
			return true
		}
	}
	return false
}

// validPort reports whether the URL's port, if it names one, is one.
func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port > 0
}

func isLoopback(host string) bool {
	if strings.ToLower(host) == "localhost" { // EqualFold takes a long s for an s
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// checkProxyURL never quotes the URL: it may hold a password.
func checkProxyURL(raw string) error {
	err := checkProxy(raw)
	if err != nil && strings.Contains(raw, "@") {
		return fmt.Errorf("%w; percent-encode the password where it has # (%%23), %% (%%25), / (%%2F), ? (%%3F) or @ (%%40)", err)
	}
	return err
}

func checkProxy(raw string) error {
	if raw == "" {
		return nil
	}
	if len(raw) > maxURL {
		return fmt.Errorf("proxy_url is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || !validPort(u) {
		return errors.New("proxy_url is not a URL: write one like http://proxy.example.com:3128")
	}
	switch u.Scheme {
	case "http", "https", "socks5":
	default:
		return errors.New("proxy_url must begin with http://, https:// or socks5://")
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#") {
		return errors.New("proxy_url must have no path, query or fragment: write scheme, host and port")
	}
	return nil
}

// normalizeCAPEM validates a ca_pem and returns its certificates and nothing
// else: what surrounds them, be it a private key cut short, is not kept.
func normalizeCAPEM(text string) (string, error) {
	if len(text) > maxCAPEM {
		return "", fmt.Errorf("ca_pem is larger than %d bytes: write only the roots that base_url needs", maxCAPEM)
	}
	var roots bytes.Buffer
	blocks := strings.Count(text, "-----BEGIN ") // the decoder passes over those that it cannot read
	for rest := []byte(text); ; blocks-- {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return "", errors.New("ca_pem holds something else than certificates: write CERTIFICATE blocks only")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", errors.New("ca_pem holds a CERTIFICATE block that is not a certificate")
		}
		if err := pem.Encode(&roots, block); err != nil {
			return "", errors.New("ca_pem holds a CERTIFICATE block that is not a certificate")
		}
	}
	if blocks != 0 || roots.Len() == 0 && text != "" {
		return "", errors.New("ca_pem is not PEM: write one or more CERTIFICATE blocks")
	}
	return strings.TrimSpace(roots.String()), nil
}

func (cfg *config) setTimes(data *framework.FieldData) error {
	for _, f := range []struct {
		field    string
		value    *time.Duration
		min, max time.Duration
		off      bool // 0 is allowed and switches it off
	}{
		{"request_timeout", &cfg.RequestTimeout, time.Second, maxRequestTimeout, false},
		{"sync_interval", &cfg.SyncInterval, time.Minute, maxDuration, true},
		{"max_ttl", &cfg.MaxTTL, 10 * time.Second, maxDuration, true},
	} {
		if !sets(data, f.field) {
			continue
		}
		d, err := wholeSeconds(data.Raw[f.field])
		if err != nil || d > f.max || d < f.min && (d != 0 || !f.off) {
			orOff := ""
			if f.off {
				orOff = ", or 0"
			}
			return fmt.Errorf("%s must be whole seconds from %s to %s%s", f.field, inShort(f.min), inShort(f.max), orOff)
		}
		*f.value = d
	}
	return nil
}

// inShort is a duration as it is written: 24h, not 24h0m0s.
func inShort(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// wholeSeconds reads a duration as Vault users write them: a number of seconds
// or a text like 90s, 5m or 1h. Vault's own field type would cut off fractions.
func wholeSeconds(raw any) (time.Duration, error) {
	switch v := raw.(type) {
	case nil:
		return 0, errors.New("null")
	case string:
		if strings.TrimSpace(v) == "" {
			return 0, errors.New("empty")
		}
	case float64:
		if v != math.Trunc(v) {
			return 0, errors.New("a fraction")
		}
	}
	d, err := parseutil.ParseDurationSecond(raw)
	if err != nil {
		return 0, err
	}
	if d < 0 || d%time.Second != 0 {
		return 0, errors.New("negative or a fraction")
	}
	return d, nil
}

// fields is what may be read back: everything but the secrets.
func (cfg *config) fields() map[string]any {
	proxy := ""
	if u, err := url.Parse(cfg.ProxyURL); err == nil {
		proxy = cfg.ProxyURL
		if u.User != nil {
			u.User = nil
			proxy = u.String()
		}
	}
	return map[string]any{
		"appid":           cfg.AppID,
		"secret_set_time": timestamp(cfg.SecretSetTime),
		"base_url":        cmp.Or(cfg.Written.BaseURL, cfg.BaseURL),
		"proxy_url":       proxy,
		"ca_pem":          cmp.Or(cfg.Written.CAPEM, cfg.CAPEM),
		"request_timeout": int64(cfg.RequestTimeout / time.Second),
		"sync_interval":   int64(cfg.SyncInterval / time.Second),
		"max_ttl":         int64(cfg.MaxTTL / time.Second),
	}
}

// loadConfig returns the stored account, nil if there is none.
func loadConfig(ctx context.Context, s logical.Storage, name string) (*config, error) {
	cfg := &config{}
	found, err := readEntry(ctx, s, storageKey(configPrefix, name), cfg)
	if err != nil || !found {
		return nil, err
	}
	cfg.Credentials = cmp.Or(cfg.Credentials, cfg.ID) // which the first entries have not
	return cfg, nil
}

func storeConfig(ctx context.Context, s logical.Storage, name string, cfg *config) error {
	return writeEntry(ctx, s, storageKey(configPrefix, name), cfg)
}
