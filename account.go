package wechat

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	configPrefix = "config/"

	// schemaVersion is written into every storage entry, so that a later
	// version can tell what it reads.
	schemaVersion = 1

	defaultBaseURL        = "https://api.weixin.qq.com"
	defaultRequestTimeout = 5 * time.Second
	defaultSyncInterval   = 5 * time.Minute
	defaultMaxTTL         = 4 * time.Minute

	maxRequestTimeout = 30 * time.Second

	maxNameLength = 255
	maxDuration   = 24 * time.Hour
	maxCredential = 256      // characters of an appid or a secret
	maxCAPEM      = 64 << 10 // bytes

	nameRule = "one or more segments joined by /, each of ASCII letters, digits, _, - and ., beginning and ending with a letter or digit; at most 255 characters"
)

// namePattern is the contract's rule for account names, its length aside.
var namePattern = regexp.MustCompile(`^[0-9A-Za-z](?:[0-9A-Za-z_.-]*[0-9A-Za-z])?(?:/[0-9A-Za-z](?:[0-9A-Za-z_.-]*[0-9A-Za-z])?)*$`)

// checkName says why name cannot name an account, or returns nil.
func checkName(name string) error {
	if len(name) > maxNameLength || !namePattern.MatchString(name) {
		return fmt.Errorf("the name of an account is %s", nameRule)
	}
	return nil
}

// account is the configuration of one account, as it is stored.
type account struct {
	Version int `json:"version"`

	// ID binds a stored token to this account: it changes whenever the account
	// becomes another one, and a token that names another ID is never served.
	ID string `json:"id"`

	AppID          string        `json:"appid"`
	Secret         string        `json:"secret"`
	SecretSetTime  time.Time     `json:"secret_set_time"`
	BaseURL        string        `json:"base_url"`
	ProxyURL       string        `json:"proxy_url,omitempty"`
	CAPEM          string        `json:"ca_pem,omitempty"`
	RequestTimeout time.Duration `json:"request_timeout"` // nanoseconds, like the two below
	SyncInterval   time.Duration `json:"sync_interval"`
	MaxTTL         time.Duration `json:"max_ttl"`
}

// newAccount holds the defaults.
func newAccount() *account {
	return &account{
		Version:        schemaVersion,
		BaseURL:        defaultBaseURL,
		RequestTimeout: defaultRequestTimeout,
		SyncInterval:   defaultSyncInterval,
		MaxTTL:         defaultMaxTTL,
	}
}

func (acct *account) endpoint() endpoint {
	return endpoint{
		appID: acct.AppID, secret: acct.Secret,
		baseURL: acct.BaseURL, proxy: acct.ProxyURL, caPEM: acct.CAPEM,
		timeout: acct.RequestTimeout,
	}
}

// update returns the account with the fields that data names changed, acct
// being nil where there is none yet. It validates everything and leaves acct
// as it is. A change that makes it another account gives it a new ID.
func (acct *account) update(data *framework.FieldData) (*account, error) {
	next := newAccount()
	if acct != nil {
		*next = *acct
	}
	if err := errors.Join(next.setCredentials(data), next.setRoute(data), next.setTimes(data)); err != nil {
		return nil, err
	}
	switch {
	case next.AppID == "":
		return nil, errors.New("appid is required: write the account's AppID")
	case next.Secret == "":
		return nil, errors.New("secret is required: write the account's AppSecret")
	}
	if acct != nil && !names(data, "secret") {
		for _, route := range []struct{ field, now, before string }{
			{"base_url", next.BaseURL, acct.BaseURL},
			{"proxy_url", next.ProxyURL, acct.ProxyURL},
			{"ca_pem", next.CAPEM, acct.CAPEM},
		} {
			if route.now != route.before {
				return nil, fmt.Errorf("%s decides where the stored secret is sent: write secret in the same request", route.field)
			}
		}
	}
	if acct == nil || next.AppID != acct.AppID || next.BaseURL != acct.BaseURL {
		next.ID = rand.Text()
	}
	return next, nil
}

// names reports whether the request names one of the fields.
func names(data *framework.FieldData, fields ...string) bool {
	for _, f := range fields {
		if _, ok := data.Raw[f]; ok {
			return true
		}
	}
	return false
}

func (acct *account) setCredentials(data *framework.FieldData) error {
	if names(data, "appid") {
		acct.AppID = data.Get("appid").(string)
		if err := checkCredential("appid", acct.AppID); err != nil {
			return err
		}
	}
	if names(data, "secret") {
		acct.Secret = data.Get("secret").(string)
		acct.SecretSetTime = wallClock().UTC().Truncate(time.Second)
		return checkCredential("secret", acct.Secret)
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

func (acct *account) setRoute(data *framework.FieldData) error {
	if names(data, "base_url") {
		normal, err := normalizeBaseURL(data.Get("base_url").(string))
		if err != nil {
			return err
		}
		acct.BaseURL = normal
	}
	if names(data, "proxy_url") {
		acct.ProxyURL = data.Get("proxy_url").(string)
		if err := checkProxyURL(acct.ProxyURL); err != nil {
			return err
		}
	}
	if names(data, "ca_pem") {
		roots, err := normalizeCAPEM(strings.TrimSpace(data.Get("ca_pem").(string)))
		acct.CAPEM = roots
		return err
	}
	return nil
}

// normalizeBaseURL validates a base_url and returns it without a trailing
// slash. An empty one stands for the default.
func normalizeBaseURL(raw string) (string, error) {
	if raw == "" {
		return defaultBaseURL, nil
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
	return strings.TrimRight(u.String(), "/"), nil
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
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// checkProxyURL never quotes the URL: it may hold a password.
func checkProxyURL(raw string) error {
	if raw == "" {
		return nil
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

func (acct *account) setTimes(data *framework.FieldData) error {
	for _, f := range []struct {
		field    string
		value    *time.Duration
		min, max time.Duration
		off      bool // 0 is allowed and switches it off
	}{
		{"request_timeout", &acct.RequestTimeout, time.Second, maxRequestTimeout, false},
		{"sync_interval", &acct.SyncInterval, time.Minute, maxDuration, true},
		{"max_ttl", &acct.MaxTTL, 10 * time.Second, maxDuration, true},
	} {
		if !names(data, f.field) {
			continue
		}
		d, err := wholeSeconds(data.Raw[f.field])
		if err != nil || d > f.max || d < f.min && (d != 0 || !f.off) {
			orOff := ""
			if f.off {
				orOff = ", or 0"
			}
			return fmt.Errorf("%s must be whole seconds from %s to %s%s", f.field, f.min, f.max, orOff)
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
func (acct *account) fields() map[string]any {
	proxy := ""
	if u, err := url.Parse(acct.ProxyURL); err == nil {
		u.User = nil
		proxy = u.String()
	}
	return map[string]any{
		"appid":           acct.AppID,
		"secret_set_time": timestamp(acct.SecretSetTime),
		"base_url":        acct.BaseURL,
		"proxy_url":       proxy,
		"ca_pem":          acct.CAPEM,
		"request_timeout": int64(acct.RequestTimeout / time.Second),
		"sync_interval":   int64(acct.SyncInterval / time.Second),
		"max_ttl":         int64(acct.MaxTTL / time.Second),
	}
}

// readAccount returns the stored account, nil if there is none.
func readAccount(ctx context.Context, s logical.Storage, name string) (*account, error) {
	acct := &account{}
	found, err := readEntry(ctx, s, storageKey(configPrefix, name), acct)
	if err != nil || !found {
		return nil, err
	}
	return acct, nil
}

func writeAccount(ctx context.Context, s logical.Storage, name string, acct *account) error {
	return writeEntry(ctx, s, storageKey(configPrefix, name), acct)
}

// storageKey is where what has a name is stored in an area. Vault's storage
// refuses keys with two dots in a row, which a name may have.
func storageKey(prefix, name string) string {
	return prefix + strings.ReplaceAll(name, "..", ".%2E")
}

// storedName is the name at the end of a storage key, which storageKey made.
func storedName(key string) string { return strings.ReplaceAll(key, "%2E", ".") }

// storedNames turns keys of storage into names, and sorts them.
func storedNames(keys []string) []string {
	for i, key := range keys {
		keys[i] = storedName(key)
	}
	slices.Sort(keys)
	return keys
}

// readEntry decodes the entry at key into v and checks its schema version. It
// reports whether there is an entry.
func readEntry(ctx context.Context, s logical.Storage, key string, v any) (bool, error) {
	entry, err := s.Get(ctx, key)
	if err != nil || entry == nil {
		return false, err
	}
	var header struct {
		Version int `json:"version"`
	}
	// The decoder's errors could quote the entry.
	if json.Unmarshal(entry.Value, &header) != nil {
		return false, fmt.Errorf("the storage entry %s cannot be decoded", key)
	}
	if header.Version != schemaVersion {
		return false, fmt.Errorf("the storage entry %s has schema version %d: this version of the plugin reads %d", key, header.Version, schemaVersion)
	}
	if json.Unmarshal(entry.Value, v) != nil {
		return false, fmt.Errorf("the storage entry %s cannot be decoded", key)
	}
	return true, nil
}

func writeEntry(ctx context.Context, s logical.Storage, key string, v any) error {
	entry, err := logical.StorageEntryJSON(key, v)
	if err != nil {
		return err
	}
	return s.Put(ctx, entry)
}
