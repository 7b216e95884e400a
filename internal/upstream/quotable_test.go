package upstream

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"
)

func TestATextWithASecretIsWithheldHoweverThatIsWritten(t *testing.T) {
	escaped := func(form string) func(string) string {
		return func(s string) string {
			var b strings.Builder
			for _, c := range []byte(s) {
				fmt.Fprintf(&b, form, c)
			}
			return b.String()
		}
	}
	encoded := func(e *base64.Encoding, before, after string) func(string) string {
		return func(s string) string { return e.EncodeToString([]byte(before + s + after)) }
	}
	quoted := func(s string) string {
		text, err := json.Marshal(s)
		require.NoError(t, err)
		return string(text)
	}
	// asJSON writes every character as JSON may.
	asJSON := func(s string) string {
		var b strings.Builder
		for _, unit := range utf16.Encode([]rune(s)) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
		return b.String()
	}
	parted := func(by string) func(string) string {
		return func(s string) string {
			var b strings.Builder
			for i, r := range s {
				if b.WriteRune(r); i%5 == 4 {
					b.WriteString(by)
				}
			}
			return b.String()
		}
	}
	for name, write := range map[string]func(string) string{
		"as it is":                    func(s string) string { return s },
		"for a URL's query":           url.QueryEscape,
		"for a URL's path":            url.PathEscape,
		"for a URL, every character":  escaped("%%%02X"),
		"for a URL, in small letters": escaped("%%%02x"),
		"for a URL, twice":            func(s string) string { return url.QueryEscape(url.QueryEscape(s)) },
		"in JSON":                     quoted,
		"for a URL, every character, three times": func(s string) string {
			return url.QueryEscape(url.QueryEscape(escaped("%%%02x")(s)))
		},
		"in JSON, every character":                   asJSON,
		"in JSON, every character, for a URL":        func(s string) string { return url.QueryEscape(asJSON(s)) },
		"in JSON within JSON":                        func(s string) string { return quoted(quoted(s)) },
		"in JSON, with escaped slashes":              func(s string) string { return strings.ReplaceAll(s, "/", `\/`) },
		"in C's notation":                            escaped(`\x%02x`),
		"in hex":                                     func(s string) string { return hex.EncodeToString([]byte(s)) },
		"in hex, in capitals":                        func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) },
		"in base64":                                  encoded(base64.StdEncoding, "", ""),
		"in base64 for URLs":                         encoded(base64.RawURLEncoding, "", ""),
		"in base64 within a text":                    encoded(base64.StdEncoding, `{"secret":"`, `"}`),
		"in base64 within a text, one byte further":  encoded(base64.StdEncoding, `{"secret": "`, `"}`),
		"in base64 within a text, two bytes further": encoded(base64.URLEncoding, `{"secret" : "`, `"}`),
		"in base64 for URLs, escaped":                func(s string) string { return url.QueryEscape(base64.URLEncoding.EncodeToString([]byte(s))) },
		"without its beginning":                      func(s string) string { return s[3:] },
		"without its end":                            func(s string) string { return s[:len(s)-3] },
		"parted by what cannot be seen":              parted("\u200b"),
		"parted by line ends":                        parted("\r\n"),
		"parted by what cannot be seen, in JSON":     func(s string) string { return asJSON(parted("\u200b")(s)) },
	} {
		for _, secret := range []string{testSecret, `p+/"\%q<w>&zß=0123456789`, "店铺的码😀0123456789abcdef", strings.Repeat("long/secret+", 6)} {
			t.Run(fmt.Sprintf("%s, %.8s", name, secret), func(t *testing.T) {
				require.Equal(t, withheld, quotable("before: "+write(secret)+" :after", "", []string{secret}))
			})
		}
	}
}

func TestATextWithAShortSecretIsWithheldToo(t *testing.T) {
	for text, want := range map[string]string{
		"it is hunter2!":                withheld,
		"it is %68unter2!":              withheld,
		"it is aHVudGVyMg==":            withheld,
		"it is 68756e74657232":          withheld,
		"it is hunter3, not that other": "it is hunter3, not that other",
	} {
		require.Equal(t, want, quotable(text, "", []string{"", "hunter2"}))
	}
}

func TestOfALongTextTheBeginningIsQuoted(t *testing.T) {
	filler := strings.Repeat("x ", maxDetail/2-2)
	text := quotable(filler+testSecret+strings.Repeat(" "+testSecret, 1000), "", []string{testSecret})
	require.Equal(t, filler+testSecret[:4]+"…", text, "less of it than would tell")
	require.Equal(t, withheld, quotable(filler[:maxDetail-pieceLength]+testSecret, "", []string{testSecret}))
	require.Equal(t, strings.Repeat("系", maxDetail/3)+"…", quotable(strings.Repeat("系", maxDetail), "", nil))
}

func TestAPlainTextIsQuoted(t *testing.T) {
	secrets := []string{testSecret, "user:proxy-p@ss"}
	for _, text := range []string{
		"", "invalid ip 1.2.3.4 ipv6 ::ffff:1.2.3.4, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394",
		"系统繁忙，此时请开发者稍候再试", "（授权方“已取消”授权：见公众平台！）", "invalid component_verify_ticket", testSecret[:pieceLength-1],
		"tls: failed to verify certificate: x509: certificate is valid for proxy-7d9f8c6b5-x2.example.com, not api.weixin.qq.com",
		"dial tcp: lookup wechat-egress-proxy-1.example.com on [2001:db8::53]:53: no such host",
	} {
		require.Equal(t, text, quotable(text, "", secrets))
	}
}

func TestATextThatIsNotPlainIsWithheld(t *testing.T) {
	const openID, token = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o", "57_sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl"
	for _, text := range []string{
		"100%", `\`, "a&#98;c", "a\nb", "a\tb", "a\x00b", "\x1b[31mred", "a\x7fb", "a\u202eb", "a\u200bb", "a\u2028b", "a\ufeffb", "a\xffb", "Ａ", "é", "😀",
		"it is " + openID, "it is " + token, "{\"access_token\":\"" + token + "\"}", "it is " + strings.ToUpper(testSecret), "it is " + strings.Repeat("7", tokenLength),
	} {
		require.Equal(t, withheld, quotable(text, "", nil), "%q", text)
	}
}

// Some of WeChat's request IDs are as long as tokens.
func TestARequestIDIsNoToken(t *testing.T) {
	const rid = "1470123456789012345678901"
	text := "invalid credential, hint: [" + rid + "], from ip: 1.2.3.4"
	require.Equal(t, text, quotable(text, rid, []string{testSecret}))
	require.Equal(t, withheld, quotable(text, "", []string{testSecret}))
	require.Equal(t, withheld, quotable(text, rid, []string{rid}))
	require.Equal(t, withheld, quotable(text+" "+rid, rid, nil), "it is the request ID once")
}

// FuzzQuotable holds what is quoted to its promise: wherever in a text a secret is,
// however it is written, the text is withheld or ends before it, and it can be shown.
func FuzzQuotable(f *testing.F) {
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		if len(secret) < pieceLength || !isPlain(secret) {
			return
		}
		for _, text := range []string{secret, url.QueryEscape(secret), hex.EncodeToString([]byte(secret)), base64.RawStdEncoding.EncodeToString([]byte(secret))} {
			shown := quotable(before+text+after, "", []string{secret})
			requireShowable(t, shown)
			if shown == withheld {
				continue
			}
			require.Greater(t, len(before)+pieceLength, maxDetail, "%q", shown)
			for i := range len(text) - pieceLength + 1 {
				require.NotContains(t, shown, text[i:i+pieceLength])
			}
		}
	})
}
