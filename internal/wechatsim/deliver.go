package wechatsim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
)

const (
	oversize = 1 << 20
	page     = "<html><body>the service is being maintained</body></html>\n"
)

func deliverAnswer(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	writeJSON(w, http.StatusOK, ans)
}

func deliverStatus(w http.ResponseWriter, _ *http.Request, f Fault, _ answer) {
	writePage(w, cmp.Or(f.Status, http.StatusInternalServerError))
}

func deliverRedirect(w http.ResponseWriter, r *http.Request, f Fault, _ answer) {
	http.Redirect(w, r, r.URL.RequestURI(), cmp.Or(f.Status, http.StatusTemporaryRedirect))
}

func deliverPage(w http.ResponseWriter, _ *http.Request, _ Fault, _ answer) {
	writePage(w, http.StatusOK)
}

// deliverReset closes the connection so that TCP, where there is one, says so
// with an RST.
func deliverReset(w http.ResponseWriter, _ *http.Request, _ Fault, _ answer) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // without it the client still sees the connection end
	}
	_ = conn.Close() // no caller is left to tell
}

func deliverNothing(http.ResponseWriter, *http.Request, Fault, answer) {
	panic(http.ErrAbortHandler)
}

func deliverHalf(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	body := encode(ans)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:len(body)/2])        // the client may be gone
	_ = http.NewResponseController(w).Flush() // as above
	panic(http.ErrAbortHandler)
}

func deliverOversize(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	writeBody(w, http.StatusOK, append(encode(ans), bytes.Repeat([]byte(" "), oversize)...))
}

func deliverWithoutToken(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	ans.without("access_token", "ticket", "openid", "phone_info")
	writeJSON(w, http.StatusOK, ans)
}

func deliverExpiresIn(w http.ResponseWriter, _ *http.Request, f Fault, ans answer) {
	if ans.errcode == 0 {
		put(&ans, "expires_in", f.ExpiresIn)
	}
	writeJSON(w, http.StatusOK, ans)
}

func deliverField(w http.ResponseWriter, _ *http.Request, f Fault, ans answer) {
	put(&ans, f.Field, f.Value)
	writeJSON(w, http.StatusOK, ans)
}

// put sets a field to raw JSON; "" leaves it out.
func put(ans *answer, name, raw string) {
	if raw == "" {
		ans.without(name)
		return
	}
	ans.set(name, json.RawMessage(raw))
}

func deliverQuoted(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	ans.quoted()
	writeJSON(w, http.StatusOK, ans)
}

func deliverBOM(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	writeBody(w, http.StatusOK, append([]byte("\xef\xbb\xbf"), encode(ans)...))
}

func deliverPlain(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write(encode(ans)) // the client may be gone
}

func deliverRaw(w http.ResponseWriter, _ *http.Request, f Fault, _ answer) {
	w.Header()["Content-Type"] = nil // none unless Header names one
	for name, value := range f.Header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
	_, _ = io.WriteString(w, f.Body) // the client may be gone
}

func deliverEcho(w http.ResponseWriter, r *http.Request, f Fault, _ answer) {
	echo(w, r, cmp.Or(f.Status, http.StatusOK))
}

func writePage(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, page) // the client may be gone
}
