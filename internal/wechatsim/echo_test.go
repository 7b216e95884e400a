package wechatsim_test

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// An echo on a connection comes after a good answer on it.
func TestEchoAfterTheAnswer(t *testing.T) {
	p := onLoopback(t)
	p.Inject(wechatsim.Fault{Kind: "echoafter"})
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := callBody(false)
	if _, err := fmt.Fprintf(conn, "POST /cgi-bin/stable_token HTTP/1.1\r\nHost: wechat.test\r\nContent-Length: %d\r\n\r\n%s", len(sent), sent); err != nil {
		t.Fatal(err)
	}
	came := bufio.NewReader(conn)
	resp, err := http.ReadResponse(came, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got reply
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Token != p.Current(appid) {
		t.Errorf("the answer is %+v, %v", got, err)
	}
	after, err := io.ReadAll(came)
	if err != nil || !strings.HasPrefix(string(after), "POST /cgi-bin/stable_token\n") || !strings.HasSuffix(string(after), "\n"+sent) {
		t.Errorf("after the answer came %q, %v", after, err)
	}
}

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
