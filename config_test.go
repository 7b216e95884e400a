package wechat

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// refusedField checks that neither an existing nor a new account takes the
// value, whether the credentials would be tried or not, and returns what the
// message says.
func (m *mount) refusedField(field string, value any) string {
	m.t.Helper()
	var message string
	for _, name := range []string{"demo", "new"} {
		for _, verify := range []bool{true, false} {
			m.changesNothing(0, func() {
				status, text := m.refused(logical.UpdateOperation, "config/"+name, account1(map[string]any{field: value, "verify": verify}))
				require.Equal(m.t, http.StatusBadRequest, status, "%s=%#v", field, value)
				require.Contains(m.t, text, field, "%#v", value)
				message = text
			})
		}
	}
	return message
}

// readBack writes a field and returns what is read back of it.
func (m *mount) readBack(field string, value any) any {
	m.t.Helper()
	require.Nil(m.t, m.ok(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret, field: value, "verify": false}), "%s=%#v", field, value)
	return m.ok(logical.ReadOperation, "config/demo", nil).Data[field]
}

func TestDurations(t *testing.T) {
	same := map[any]int64{} // what all of them take, and how it reads back
	for _, minuteAndAHalf := range []any{90, int64(90), float64(90), json.Number("90"), "90", "90s", "1m30s", "1.5m", "0.025h"} {
		same[minuteAndAHalf] = 90
	}
	maps.Copy(same, map[any]int64{"5m": 300, "300": 300, "1h": 3600, "24h": 86400, 86400: 86400})
	for field, c := range map[string]struct {
		initial int64
		accepts map[any]int64
		refuses []any
		says    []string
	}{
		"request_timeout": {
			5,
			map[any]int64{1: 1, "1s": 1, "1000ms": 1, "2": 2, 30: 30, "30s": 30, "0.5m": 30, json.Number("7"): 7, 5.0: 5},
			[]any{0, "0", "0s", "-0", 31, "31s", "1m", "5m", 86400},
			[]string{"whole seconds", "1s", "30s"},
		},
		"sync_interval": {
			300,
			map[any]int64{0: 0, "0": 0, "0s": 0, json.Number("0"): 0, 0.0: 0, 60: 60, "60s": 60, "1m": 60},
			[]any{1, 59, "59s", 10},
			[]string{"whole seconds", "1m", "24h", "0"},
		},
		"max_ttl": {
			240,
			map[any]int64{0: 0, "0": 0, "0s": 0, json.Number("0"): 0, 0.0: 0, 10: 10, "10s": 10, 11: 11},
			[]any{1, 5, 9, "9s"},
			[]string{"whole seconds", "10s", "24h", "0"},
		},
	} {
		t.Run(field, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.ok(logical.UpdateOperation, "config/demo", account1(nil))
				require.Equal(t, c.initial, m.ok(logical.ReadOperation, "config/demo", nil).Data[field])

				accepts := maps.Clone(c.accepts)
				if field != "request_timeout" {
					maps.Copy(accepts, same)
				}
				for value, want := range accepts {
					require.Equal(t, want, m.readBack(field, value), "%#v", value)
				}
				for _, value := range append(c.refuses,
					-1, int64(-60), -60.0, "-1", "-60", "-1s", "-60s", "-1m", json.Number("-60"), // negative
					"500ms", "-500ms", "1500ms", "60.5s", "60s1ms", "1ns", "-1ns", "1.5", 1.5, 60.5, -0.5, json.Number("60.5"), // a fraction
					"25h", 86401, "86401", json.Number("86401"), "86400001ms", "24h1s", "365d", // too long
					math.MaxInt64, uint64(math.MaxUint64), math.MaxFloat64, "9223372036854775807", "99999999999999999999", json.Number("18446744073"), json.Number("1e30"),
					"", " ", "soon", "60 s", "1 minute", "1m 30s", "s", "0x3c", "1_000", "60,0", true, false,
				) {
					require.Contains(t, m.refusedField(field, value), "whole", "%#v", value)
				}
				tooLong := m.refusedField(field, "25h")
				for _, words := range c.says {
					require.Contains(t, tooLong, words)
				}
				require.NotContains(t, tooLong, "m0s")
				require.NotContains(t, tooLong, "h0m")
			})
		})
	}
}

func TestCredentials(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		for _, field := range []string{"appid", "secret"} {
			m.readBack(field, strings.Repeat("x", maxCredential))
			m.readBack(field, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~\\\"") // whatever is printable
			m.readBack(field, json.Number("1234567890"))            // what a client makes of digits
			require.Contains(t, m.refusedField(field, ""), "write the value")
			long := m.refusedField(field, strings.Repeat("x", maxCredential+1))
			require.Contains(t, long, "longer than 256")
			require.NotContains(t, long, "xxx")
			for _, odd := range []string{" ", "\n", "\r\n", "\t", "\x00", "\x7f", "\u00a0", "\u200b", "\ufeff", "ü", "密", "\xff"} {
				for _, value := range []string{odd + "wx-mistyped", "wx-mistyped" + odd, "wx-mis" + odd + "typed"} {
					text := m.refusedField(field, value)
					require.Contains(t, text, "check for", "%q", value)
					require.NotContains(t, text, "typed", "%q", value)
				}
			}
		}
		require.NotContains(t, m.logs.String(), "typed")
	})
}

func TestBaseURL(t *testing.T) {
	const (
		noURL  = "is not a URL"
		api    = "holds a path of WeChat's API"
		plain  = "must use https"
		beyond = "no user, query or fragment"
	)
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		for value, want := range map[string]string{
			"":                                          "https://api.weixin.qq.com",
			"https://api.weixin.qq.com":                 "https://api.weixin.qq.com",
			"https://api.weixin.qq.com/":                "https://api.weixin.qq.com",
			"https://api2.weixin.qq.com":                "https://api2.weixin.qq.com",
			"HTTPS://API.WeiXin.QQ.com":                 "https://api.weixin.qq.com",
			"https://relay.example.com:8443":            "https://relay.example.com:8443",
			"https://relay.example.com:8443/":           "https://relay.example.com:8443",
			"https://relay.example.com/wechat":          "https://relay.example.com/wechat",
			"https://relay.example.com/a/b/":            "https://relay.example.com/a/b",
			"https://Relay.Example.com/WeChat":          "https://relay.example.com/WeChat",
			"https://192.0.2.1":                         "https://192.0.2.1",
			"https://[2001:db8::1]:8443/wechat":         "https://[2001:db8::1]:8443/wechat",
			"https://127.0.0.1:8443":                    "https://127.0.0.1:8443",
			"http://127.0.0.1":                          "http://127.0.0.1",
			"http://127.0.0.1:8080/":                    "http://127.0.0.1:8080",
			"http://127.1.2.3:8080":                     "http://127.1.2.3:8080",
			"http://127.255.255.255":                    "http://127.255.255.255",
			"http://[::1]:8080":                         "http://[::1]:8080",
			"http://localhost:8080":                     "http://localhost:8080",
			"https://relay.example.com/cgi-bin/wechat":  "https://relay.example.com/cgi-bin/wechat",
			"https://relay.example.com/sns-relay":       "https://relay.example.com/sns-relay",
			"https://relay.example.com/cgi-bin-relay/x": "https://relay.example.com/cgi-bin-relay/x",
			"http://LOCALHOST:8080/wechat":              "http://localhost:8080/wechat",
			"HTTP://localhost":                          "http://localhost",
		} {
			wrote := value
			if value == "" {
				wrote = want
			}
			require.Equal(t, wrote, m.readBack("base_url", value), "it is read back as it was written")
			cfg, err := loadConfig(t.Context(), m.storage, "demo")
			require.NoError(t, err)
			require.Equal(t, want, cfg.BaseURL, value)
		}
		for value, says := range map[string]string{
			"http://api.weixin.qq.com":                       plain,
			"http://127.0.0.1.example.com":                   plain,
			"http://localhost.example.com":                   plain,
			"http://example.com:127":                         plain,
			"http://127.0.0.1@example.com":                   beyond,
			"http://localhost:80@example.com":                beyond,
			"http://192.0.2.1":                               plain,
			"http://10.0.0.1":                                plain,
			"http://126.255.255.255":                         plain,
			"http://128.0.0.1":                               plain,
			"http://0.0.0.0":                                 plain,
			"http://[::]":                                    plain,
			"http://[::2]":                                   plain,
			"http://[fe80::1]":                               plain,
			"ftp://api.weixin.qq.com":                        plain,
			"socks5://127.0.0.1:1080":                        plain,
			"httpss://api.weixin.qq.com":                     plain,
			"//api.weixin.qq.com":                            plain,
			"https://us3r@host.example":                      beyond,
			"https://us3r:us3r@host.example":                 beyond,
			"https://@host.example":                          beyond,
			"https://:@host.example":                         beyond,
			"https://host.example?us3r=us3r":                 beyond,
			"https://host.example/a?us3r":                    beyond,
			"https://host.example?":                          beyond,
			"https://host.example/?":                         beyond,
			"https://host.example#us3r":                      beyond,
			"https://host.example#":                          beyond,
			"https://host.example/a#":                        beyond,
			"https://api.weixin.qq.com/cgi-bin":              api,
			"https://api.weixin.qq.com/cgi-bin/":             api,
			"https://API.weixin.qq.com/cgi-bin/stable_token": api,
			"https://api2.weixin.qq.com/cgi-bin/token":       api,
			"https://sh.api.weixin.qq.com/x":                 api,
			"https://relay.example.com/wechat/cgi-bin/":      api,
			"https://relay.example.com/cgi-bin/stable_token": api,
			"https://relay.example.com/sns/jscode2session":   api,
			"api.weixin.qq.com":                              noURL,
			"api.weixin.qq.com:443":                          noURL,
			"localhost:8080":                                 noURL,
			"https://":                                       noURL,
			"https:///cgi-bin":                               noURL,
			"https://:443":                                   noURL,
			"https:api.weixin.qq.com":                        noURL,
			"https:/api.weixin.qq.com":                       noURL,
			"file:///etc/passwd":                             noURL,
			"://":                                            noURL,
			"/":                                              noURL,
			" ":                                              noURL,
			" https://api.weixin.qq.com":                     noURL,
			"https://api.weixin.qq.com ":                     noURL,
			"https://api.weixin.qq.com\n":                    noURL,
			"https://api .weixin.qq.com":                     noURL,
			"https://host.example:port":                      noURL,
			"https://host.example/%zz":                       noURL,
			"https://[::1":                                   noURL,
			"https://us3r:us3r%zz@host.exampl":               noURL,
		} {
			text := m.refusedField("base_url", value)
			require.Contains(t, text, says, value)
			require.NotContains(t, text, "us3r", "what is wrong in it may be a secret")
		}
		require.NotContains(t, m.logs.String(), "us3r")
	})
}

func TestProxyURL(t *testing.T) {
	const password = "pr0xy-passw0rd"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false, "base_url": "https://192.0.2.1"})
		for value, want := range map[string]string{
			"":                               "",
			"http://proxy.example.com:3128":  "http://proxy.example.com:3128",
			"https://proxy.example.com":      "https://proxy.example.com",
			"socks5://192.0.2.1:1080":        "socks5://192.0.2.1:1080",
			"socks5://[2001:db8::1]:1080":    "socks5://[2001:db8::1]:1080",
			"HTTP://Proxy.example.com:3128":  "HTTP://Proxy.example.com:3128",
			"http://proxy.example.com:3128/": "http://proxy.example.com:3128/",
			"http://egress:" + password + "@proxy.example.com:3128":   "http://proxy.example.com:3128",
			"https://egress:" + password + "%2F%40@proxy.example.com": "https://proxy.example.com",
			"socks5://" + password + "@proxy.example.com:1080":        "socks5://proxy.example.com:1080",
			"socks5://:" + password + "@proxy.example.com:1080":       "socks5://proxy.example.com:1080",
			"http://egress:@" + "proxy.example.com":                   "http://proxy.example.com",
			"http://egress%3A" + password + "@proxy.example.com:3128": "http://proxy.example.com:3128",
		} {
			require.Equal(t, want, m.readBack("proxy_url", value), value)
			resp, err := m.request(logical.ReadOperation, "config/demo", nil)
			require.NotContains(t, shown(t, resp, err), password)
		}
		for value, says := range map[string]string{
			"proxy.example.com":                              "is not a URL",
			"proxy.example.com:3128":                         "is not a URL",
			"egress:" + password + "@proxy.example.com:3128": "is not a URL",
			"http://":                         "is not a URL",
			"http://:3128":                    "is not a URL",
			"http://egress:" + password + "@": "is not a URL",
			"http://egress:" + password + "%zz@proxy.example.com": "is not a URL",
			"http://egress:" + password + "@proxy.example.com\n":  "is not a URL",
			"http://egress:" + password + " @proxy.example.com":   "is not a URL",
			"ftp://egress:" + password + "@proxy.example.com":     "http://, https:// or socks5://",
			"socks4://proxy.example.com":                          "http://, https:// or socks5://",
			"//proxy.example.com:3128":                            "http://, https:// or socks5://",
			"http://proxy.example.com/" + password:                "no path, query or fragment",
			"http://proxy.example.com?" + password:                "no path, query or fragment",
			"http://proxy.example.com?":                           "no path, query or fragment",
			"http://proxy.example.com/#" + password:               "no path, query or fragment",
		} {
			text := m.refusedField("proxy_url", value)
			require.Contains(t, text, says, value)
			require.NotContains(t, text, password)
		}
		require.NotContains(t, m.logs.String(), password)
	})
}

func TestAProxysPasswordThatIsNotEncodedIsToldSo(t *testing.T) {
	const hint = "percent-encode the password"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false, "base_url": "https://192.0.2.1"})
		for _, password := range []string{"pa#sswd", "12#sswd", "pa%sswd", "pa%", "pa/sswd", "12/sswd", "pa?sswd", "pa@s/swd", "p[sswd"} {
			text := m.refusedField("proxy_url", "http://egress:"+password+"@proxy.example.com:3128")
			require.Contains(t, text, hint, password)
			require.NotContains(t, text, password)
			require.NotContains(t, text, "sswd")
			m.readBack("proxy_url", "http://egress:"+url.QueryEscape(password)+"@proxy.example.com:3128")
		}
		// That is no doubt: the last @ is the one before the host.
		require.Equal(t, "http://proxy.example.com:3128", m.readBack("proxy_url", "http://egress:pa@sswd@proxy.example.com:3128"))
		require.NotContains(t, m.refusedField("proxy_url", "http://proxy.example.com/path"), hint, "there is none")
	})
}

func TestAnEqualFormOfTheWayKeepsTheToken(t *testing.T) {
	cert, _ := certificate(t)
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"ca_pem": strings.TrimSpace(cert)})
		token := m.served("demo")
		for _, equal := range []map[string]any{
			{"base_url": "HTTP://127.0.0.1:80/", "ca_pem": cert + "\n"},
			{"base_url": testURL + "/", "ca_pem": strings.ReplaceAll(cert, "\n", "\r\n")},
			{"base_url": testURL, "ca_pem": strings.TrimSpace(cert)},
		} {
			m.update("demo", account1(equal))
			require.Subset(t, m.config("demo"), equal)
			require.Equal(t, token, m.served("demo"))
			m.reopen()
			require.Subset(t, m.config("demo"), equal, "also after a restart")
		}
	})
}

func TestAnOriginalIDIsNoAppID(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		text := m.refusedField("appid", "gh_0123456789ab")
		require.Contains(t, text, "原始 ID")
		require.Contains(t, text, "begins with wx")
		require.NotContains(t, text, "0123456789ab")
	})
}

func TestTheProxysPasswordIsNeverShown(t *testing.T) {
	const password = "pr0xy-passw0rd"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		proxies := []string{
			"http://egress:" + password + "@127.0.0.1:3128",   // which refuses
			"https://egress:" + password + "@127.0.0.1:3128",  // which speaks no TLS
			"socks5://egress:" + password + "@127.0.0.1:1080", // nor SOCKS
		}
		for n, proxy := range proxies {
			name := fmt.Sprintf("proxied-%d", n)
			proxied := map[string]any{"proxy_url": proxy, "base_url": "https://192.0.2.1"}
			resp, err := m.request(logical.UpdateOperation, "config/"+name, account1(proxied))
			require.NotContains(t, shown(t, resp, err), password)
			require.Error(t, err, "none of them leads to WeChat")

			proxied["verify"] = false
			m.write(name, proxied)
			for _, path := range []string{"config/", "token/"} {
				resp, err = m.request(logical.ReadOperation, path+name, nil)
				require.NotContains(t, shown(t, resp, err), password)
			}
		}
		require.Contains(t, m.logs.String(), "no token from WeChat")
		require.NotContains(t, m.logs.String(), password)
	})
}

// certificate returns a self-signed certificate and its key, in PEM.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return inPEM("CERTIFICATE", der), inPEM("PRIVATE KEY", keyDER)
}

func inPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestCAPEMTakesCertificates(t *testing.T) {
	cert, _ := certificate(t)
	other, _ := certificate(t)
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		for name, value := range map[string]string{
			"none":                   "",
			"one":                    cert,
			"two":                    cert + other,
			"without its line end":   strings.TrimSpace(cert),
			"among white space":      "\n\n" + cert + "\n \n" + other + "\n\n",
			"with DOS line ends":     strings.ReplaceAll(cert, "\n", "\r\n"),
			"with words before each": "subject=Company CA\n" + cert + "subject=Other CA\n" + other,
			"none again":             " \n",
		} {
			got := m.readBack("ca_pem", value).(string)
			require.Equal(t, blocks(value), blocks(got), name)
			if strings.Contains(value, "subject=") {
				require.NotContains(t, got, "subject=", "what is no certificate is not kept")
			} else {
				require.Equal(t, value, got, "%s is read back as it was written", name)
			}
		}
	})
}

// What is in ca_pem is read back, so a key in it would be there for everybody
// to see; and what is not used as a root must not look as if it were.
func TestCAPEMTakesNothingElse(t *testing.T) {
	cert, key := certificate(t)
	other, _ := certificate(t)
	der := blocks(cert)[0]
	keyLine := strings.Split(key, "\n")[1]
	for name, value := range map[string]string{
		"no PEM":                              "company-ca",
		"the name of a file":                  "/etc/ssl/certs/company-ca.pem",
		"DER":                                 string(der),
		"cut short":                           cert[:len(cert)/2],
		"not base64":                          "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
		"not a certificate":                   inPEM("CERTIFICATE", []byte("company-ca")),
		"a certificate and another cut short": cert + other[:len(other)/2],
		"a certificate of another kind":       inPEM("TRUSTED CERTIFICATE", der),
		"a certificate with headers":          string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"Proc-Type": "4"}, Bytes: der})),
		"a request":                           inPEM("CERTIFICATE REQUEST", []byte("company-ca")),
		"a private key":                       key,
		"a certificate and its key":           cert + key,
		"a key and its certificate":           key + cert,
		"a key cut short and its certificate": strings.TrimSuffix(key, "-----END PRIVATE KEY-----\n") + cert,
		"too much":                            strings.Repeat(cert, 200),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"verify": false})
				text := m.refusedField("ca_pem", value)
				require.NotContains(t, text, "company-ca")
				require.NotContains(t, text, keyLine)
				require.NotContains(t, m.logs.String(), keyLine)
			})
		})
	}
}

// blocks returns the contents of the PEM blocks in text.
func blocks(text string) [][]byte {
	var all [][]byte
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		all = append(all, bytes.Clone(block.Bytes))
	}
}

// A writer who does not know an account's secret must not be able to send it elsewhere.
func TestWhereTheSecretIsSentChangesOnlyWithTheSecret(t *testing.T) {
	cert, _ := certificate(t)
	other, _ := certificate(t)
	const url = "https://192.0.2.1:80"
	initial := map[string]string{"base_url": url, "proxy_url": "http://egress:pw@127.0.0.1:3128", "ca_pem": cert}
	for field, c := range map[string]struct {
		same    []string // is no change, and to say so would tell what is stored
		changed []string
	}{
		"base_url":  {[]string{url, url + "/", "HTTPS://192.0.2.1:80"}, []string{"", "https://192.0.2.1", "https://192.0.2.2:80", url + "/x", "https://192.0.2.1:81"}},
		"proxy_url": {[]string{initial["proxy_url"]}, []string{"", "http://127.0.0.1:3128", "http://egress:other@127.0.0.1:3128", "http://egress:pw@127.0.0.2:3128", "socks5://egress:pw@127.0.0.1:3128"}},
		"ca_pem":    {[]string{cert, strings.TrimSpace(cert), "\n" + cert}, []string{"", other, cert + other}},
	} {
		t.Run(field, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				all := map[string]any{"verify": false}
				for field, value := range initial {
					all[field] = value
				}
				m.write("demo", all)
				for _, value := range slices.Concat(c.same, c.changed) {
					for _, more := range []map[string]any{
						{},
						{"verify": false},
						{"secret": ""},
						{"secret": nil},
						{"appid": testAppID},
						{"appid": otherAppID, "verify": false},
						{"max_ttl": 60},
					} {
						data := maps.Clone(more)
						data[field] = value
						m.changesNothing(0, func() {
							status, text := m.refused(logical.UpdateOperation, "config/demo", data)
							require.Equal(t, http.StatusBadRequest, status, "%s=%q with %v", field, value, more)
							require.Contains(t, text, "secret", "%s=%q with %v", field, value, more)
							if _, named := more["secret"]; !named {
								require.Contains(t, text, field)
								require.Contains(t, text, "same request")
							}
						})
					}
				}
				for _, value := range c.changed {
					m.ok(logical.UpdateOperation, "config/demo", map[string]any{field: value, "secret": testSecret, "verify": false})
				}
			})
		})
	}
}
