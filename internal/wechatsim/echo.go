package wechatsim

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Echo returns a relay that passes nothing on, and shows what it was sent in its
// answer, as some do in their error pages: raw, and escaped for URL, base64, hex
// and JSON. With the status 200 the answer is an error in WeChat's form.
func Echo(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { echo(w, r, status) })
}

func echo(w http.ResponseWriter, r *http.Request, status int) {
	sent, body := received(r)
	var shown strings.Builder
	for _, text := range append([]string{sent, string(body)}, values(r.URL.Query(), body)...) {
		for _, encoding := range encodings {
			shown.WriteString(encoding(text) + "\n")
		}
	}
	if status == http.StatusOK {
		writeJSON(w, status, refusalOf(50000, shown.String()))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, shown.String()) // the client may be gone
}

// received returns a request as it came, and its body.
func received(r *http.Request) (sent string, body []byte) {
	body, _ = io.ReadAll(io.LimitReader(r.Body, maxBody)) // what came is shown
	var all strings.Builder
	all.WriteString(r.Method + " " + r.URL.RequestURI() + "\n")
	_ = r.Header.Write(&all) // a builder takes everything
	all.WriteString("\n")
	all.Write(body)
	return all.String(), body
}

// deliverEchoAfter answers, and then shows what it was sent on a connection that the
// client keeps for its next call.
func deliverEchoAfter(w http.ResponseWriter, r *http.Request, _ Fault, ans answer) {
	sent, _ := received(r)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	if conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
		return
	}
	body := encode(ans)
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, len(body))
	_, _ = io.WriteString(conn, head+string(body)+sent) // the client may be gone
}

// encodings are those in which an echo shows what it was sent.
var encodings = []func(string) string{
	func(s string) string { return s },
	url.QueryEscape,
	url.PathEscape,
	func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
	func(s string) string { return hex.EncodeToString([]byte(s)) },
	func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) },
	func(s string) string { return string(encode(s)) },
}

// values returns the parameters of a call.
func values(query url.Values, body []byte) []string {
	var all []string
	for _, of := range query {
		all = append(all, of...)
	}
	var fields map[string]any
	_ = json.Unmarshal(body, &fields) // what is not JSON has no fields
	for _, value := range fields {
		all = append(all, fmt.Sprint(value))
	}
	return all
}
