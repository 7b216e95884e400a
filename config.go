package wechat

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

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

	// ID changes whenever the account becomes another one. The record of a token lists
	// its names with their IDs, and a name with another ID is not served from it.
	ID string `json:"id"`

	// Credentials changes with what the issuer is asked with. The record of a token says
	// which of a name's the issuer accepted last.
	Credentials string `json:"credentials"`

	Kind string `json:"kind,omitempty"` // of its platform; "" is WeChat

	AppID          string        `json:"appid"`
	Secret         string        `json:"secret"`
	SecretSetTime  time.Time     `json:"secret_set_time"`
	BaseURL        string        `json:"base_url"`
	ProxyURL       string        `json:"proxy_url,omitempty"`
	CAPEM          string        `json:"ca_pem,omitempty"`
	RequestTimeout time.Duration `json:"request_timeout"` // nanoseconds, like the two below
	SyncInterval   time.Duration `json:"sync_interval"`
	MaxTTL         time.Duration `json:"max_ttl"`

	// Leak is a leak response that was pending when the account came here from another
	// upstream, which may have the same token. It enters the record of the token when the
	// issuer accepts the account here, and never before: an AppID is public.
	Leak leak `json:"leak,omitzero"`

	// Written is read back, where it is not empty: clients compare it with what they
	// wrote, and would take the equal form that the engine uses for a change.
	Written struct {
		BaseURL string `json:"base_url,omitempty"`
		CAPEM   string `json:"ca_pem,omitempty"`
	} `json:"written,omitzero"`
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

// way is how the account's calls go, by the host and port of its proxy and of its
// upstream: accounts with the same way are slow together.
func (cfg *config) way() string {
	way := hostOf(cfg.BaseURL)
	if cfg.ProxyURL != "" {
		way += " by " + hostOf(cfg.ProxyURL)
	}
	return way
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// update returns the account with the fields that data names changed, cfg
// being nil where there is none yet. It validates everything and leaves cfg
// as it is. A change that makes it another account gives it a new ID.
func (cfg *config) update(data *framework.FieldData) (*config, error) {
	next := newConfig()
	if cfg != nil {
		*next = *cfg
	}
	if err := errors.Join(next.setTexts(data), next.setTimes(data)); err != nil {
		return nil, err
	}
	switch {
	case next.AppID == "":
		return nil, errors.New("appid is required: there is no account of this name yet; check the name, or write the new account's appid and secret")
	case next.Secret == "":
		return nil, errors.New("secret is required: write the account's AppSecret")
	}
	if cfg != nil && !sets(data, "secret") {
		// Whatever the value: an answer that depends on it would tell when a guess of
		// the proxy's password is right.
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

func (cfg *config) setTexts(data *framework.FieldData) error {
	var errs []error
	for _, f := range []struct {
		field string
		set   func(string) error
	}{
		{"appid", cfg.setAppID},
		{"secret", cfg.setSecret},
		{"base_url", cfg.setBaseURL},
		{"proxy_url", cfg.setProxyURL},
		{"ca_pem", cfg.setCAPEM},
	} {
		if sets(data, f.field) {
			errs = append(errs, f.set(data.Get(f.field).(string)))
		}
	}
	return errors.Join(errs...)
}

func (cfg *config) setAppID(value string) error {
	cfg.AppID = value
	if strings.HasPrefix(value, "gh_") {
		return errors.New("appid is the account's original ID (原始 ID), which begins with gh_: write its AppID, which begins with wx and is shown in the account's console beside the AppSecret")
	}
	return checkCredential("appid", value)
}

func (cfg *config) setSecret(value string) error {
	cfg.Secret, cfg.SecretSetTime = value, wallClock().UTC().Truncate(time.Second)
	return checkCredential("secret", value)
}

func checkCredential(field, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is empty: write the value shown in the account's console", field)
	case len(value) > maxCredential:
		return fmt.Errorf("%s is longer than %d characters: write the value shown in the account's console", field, maxCredential)
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("%s holds white space or a character that none can have: check for a line end at its end", field)
	}
	return nil
}

// setBaseURL takes a base_url; an empty one stands for the default.
func (cfg *config) setBaseURL(raw string) error {
	cfg.BaseURL, cfg.Written.BaseURL = defaultBaseURL, raw
	if raw == "" {
		return nil
	}
	u, err := parseURL("base_url", raw, defaultBaseURL)
	switch {
	case err != nil:
		return err
	case u.User != nil || hasTail(u, raw):
		return errors.New("base_url must have no user, query or fragment: write scheme, host, and port and path where needed")
	case u.Scheme == "https":
	case u.Scheme == "http" && isLoopback(u.Hostname()):
	default:
		return errors.New("base_url must use https; http is for 127.0.0.0/8, ::1 and localhost only")
	}
	u.Host = strings.ToLower(u.Host)
	path := strings.TrimRight(u.Path, "/")
	if path != "" && strings.HasSuffix(u.Hostname(), ".weixin.qq.com") || apiPath.MatchString(path) {
		return errors.New("base_url holds a path of WeChat's API, which the engine appends to it: write only what comes before, such as https://api.weixin.qq.com")
	}
	cfg.BaseURL = strings.TrimRight(u.String(), "/")
	return nil
}

// parseURL parses the value of a field. It never quotes it: it may hold a password.
func parseURL(field, raw, example string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, fmt.Errorf("%s is longer than %d bytes", field, maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.Opaque != "" || !validPort(u) {
		return nil, fmt.Errorf("%s is not a URL: write one like %s", field, example)
	}
	return u, nil
}

// hasTail reports whether a URL has a query or a fragment, be it an empty one.
func hasTail(u *url.URL, raw string) bool {
	return u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#")
}

// apiPath is the end of a base_url that goes on into WeChat's API. A relay may have a path of
// its own, also below a cgi-bin.
var apiPath = regexp.MustCompile(`/(cgi-bin(/token|/stable_token)?|sns(/jscode2session|/oauth2/access_token)?)$`)

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

func (cfg *config) setProxyURL(raw string) error {
	cfg.ProxyURL = raw
	err := checkProxyURL(raw)
	if err != nil && strings.Contains(raw, "@") {
		return fmt.Errorf("%w; percent-encode the password where it has # (%%23), %% (%%25), / (%%2F), ? (%%3F) or @ (%%40)", err)
	}
	return err
}

func checkProxyURL(raw string) error {
	if raw == "" {
		return nil
	}
	u, err := parseURL("proxy_url", raw, "http://proxy.example.com:3128")
	switch {
	case err != nil:
		return err
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5":
		return errors.New("proxy_url must begin with http://, https:// or socks5://")
	case u.Path != "" && u.Path != "/" || hasTail(u, raw):
		return errors.New("proxy_url must have no path, query or fragment: write scheme, host and port")
	}
	return nil
}

// setCAPEM takes the certificates of a ca_pem. It keeps the text for reading it back only
// if there is nothing else in it but white space: what surrounds them may be a private key
// cut short.
func (cfg *config) setCAPEM(raw string) error {
	roots, err := readCAPEM(strings.TrimSpace(raw))
	cfg.CAPEM, cfg.Written.CAPEM = roots, ""
	if raw != roots && withoutSpace(raw) == withoutSpace(roots) {
		cfg.Written.CAPEM = raw
	}
	return err
}

func withoutSpace(text string) string { return strings.Join(strings.Fields(text), "") }

// readCAPEM returns the certificates of a ca_pem in their usual form.
func readCAPEM(text string) (string, error) {
	if len(text) > maxCAPEM {
		return "", fmt.Errorf("ca_pem is larger than %d bytes: write only the roots that base_url needs", maxCAPEM)
	}
	var roots []byte
	unread := strings.Count(text, "-----BEGIN ") // the decoder passes over blocks that it cannot read
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return "", errors.New("ca_pem holds something else than certificates: write CERTIFICATE blocks only")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", errors.New("ca_pem holds a CERTIFICATE block that is not a certificate")
		}
		roots = append(roots, pem.EncodeToMemory(block)...)
		unread--
	}
	if unread != 0 || roots == nil && text != "" {
		return "", errors.New("ca_pem is not PEM: write one or more CERTIFICATE blocks")
	}
	return strings.TrimSpace(string(roots)), nil
}

func (cfg *config) setTimes(data *framework.FieldData) error {
	for _, f := range []struct {
		field    string
		value    *time.Duration
		min, max time.Duration
		off      bool // 0 is allowed and switches it off
		allowed  string
	}{
		{"request_timeout", &cfg.RequestTimeout, time.Second, maxRequestTimeout, false, "from 1s to 30s"},
		{"sync_interval", &cfg.SyncInterval, time.Minute, maxDuration, true, "from 1m to 24h, or 0"},
		{"max_ttl", &cfg.MaxTTL, 10 * time.Second, maxDuration, true, "from 10s to 24h, or 0"},
	} {
		if !sets(data, f.field) {
			continue
		}
		d, err := wholeSeconds(data.Raw[f.field])
		if err != nil || d > f.max || d < f.min && (d != 0 || !f.off) {
			return fmt.Errorf("%s must be whole seconds %s", f.field, f.allowed)
		}
		*f.value = d
	}
	return nil
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
	proxy := cfg.ProxyURL
	if u, err := url.Parse(proxy); err != nil {
		proxy = ""
	} else if u.User != nil {
		u.User = nil
		proxy = u.String()
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

// leak is the answer to a leak that is not complete. It is announced in the same write as
// the first of its two forced calls, and undone with it.
type leak struct {
	Name      string    `json:"name"` // the account that asked
	Requested time.Time `json:"requested"`
	Left      int       `json:"left"`            // how often the credential is still to be replaced by force
	First     int64     `json:"first,omitempty"` // the fence of the first forced call of its present step; 0 if there is none
	Called    time.Time `json:"called,omitzero"` // the last forced call before it moved here
}
