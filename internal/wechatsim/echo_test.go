package wechatsim_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestEcho(t *testing.T) {
	const sent = "s<e>c/r+e t\"é"
	shown := map[string]string{
		"raw":         sent,
		"URL":         url.QueryEscape(sent),
		"path":        url.PathEscape(sent),
		"base64":      base64.StdEncoding.EncodeToString([]byte(sent)),
		"URL base64":  base64.URLEncoding.EncodeToString([]byte(sent)),
		"hex":         hex.EncodeToString([]byte(sent)),
		"capital hex": strings.ToUpper(hex.EncodeToString([]byte(sent))),
		"JSON":        body(sent),
	}
	calls := []struct{ name, method, target, body string }{
		{"in the query", "GET", "/sns/jscode2session?secret=" + url.QueryEscape(sent), ""},
		{"in the body", "POST", "/cgi-bin/stable_token", body(map[string]string{"secret": sent})},
	}
	for _, c := range calls {
		for _, status := range []int{200, 502} {
			w := httptest.NewRecorder()
			wechatsim.Echo(status).ServeHTTP(w, httptest.NewRequest(c.method, c.target, strings.NewReader(c.body)))
			text := w.Body.String()
			if status == 200 {
				var got reply
				if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Errcode != 50000 {
					t.Errorf("got %s, %v", text, err)
				}
				text = got.Errmsg
			}
			if w.Code != status {
				t.Errorf("HTTP %d; want %d", w.Code, status)
			}
			for encoding, want := range shown {
				if !strings.Contains(text, "\n"+want+"\n") {
					t.Errorf("%s, HTTP %d: %s is not shown", c.name, status, encoding)
				}
			}
		}
	}
}
