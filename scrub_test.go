package wechat

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

// toldLength is the length in characters from which a piece of a secret must not be
// told.
const toldLength = 12

func TestASecretIsFoundHoweverItIsWritten(t *testing.T) {
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
				written := write(secret)
				text := newScrubber(secret).clean("before: " + written + " :after")
				require.True(t, strings.HasPrefix(text, "before: "), text)
				require.True(t, strings.HasSuffix(text, " :after"), text)
				if strings.Contains(name, "within a text") {
					require.Less(t, len(text), len("before: "+redacted+" :after")+32, "%s: only the rest of the text stays", text)
					return
				}
				if strings.Contains(name, "parted") {
					require.Equal(t, "before: "+redacted+" :after", text)
				}
				for i := range len(written) - toldLength + 1 {
					require.NotContains(t, text, written[i:i+toldLength])
				}
			})
		}
	}
}

func TestShortSecretsAreFoundToo(t *testing.T) {
	s := newScrubber("", "hunter2")
	require.Equal(t, "it is [redacted], not hunter3", s.clean("it is hunter2, not hunter3"))
	require.Equal(t, "it is [redacted]!", s.clean("it is %68unter2!"))
	require.NotContains(t, s.clean("it is "+base64.StdEncoding.EncodeToString([]byte("hunter2"))), "aHVudGVyM")
	require.Equal(t, "nothing to see", newScrubber().clean("nothing to see"))
}

func TestOfALongTextTheBeginningIsCleaned(t *testing.T) {
	s := newScrubber(testSecret)
	filler := strings.Repeat("x", maxCleaned-pieceLength+1)
	require.Equal(t, filler+redacted, s.clean(filler+testSecret+strings.Repeat(" "+testSecret, 1000)), "the secret is at the cut")
	require.Equal(t, strings.Repeat("系", maxCleaned/3), s.clean(strings.Repeat("系", 10*maxCleaned)))
}

func TestWhatIsNoSecretStays(t *testing.T) {
	s := newScrubber(testSecret, "user:proxy-p@ss")
	for _, text := range []string{
		"invalid ip 1.2.3.4 ipv6 ::ffff:1.2.3.4, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394",
		"系统繁忙，此时请开发者稍候再试", "100% \\ %zz \\u12 \\", testSecret[:pieceLength-1],
	} {
		require.Equal(t, text, s.clean(text))
	}
}
