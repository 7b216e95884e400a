package wechatsim

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The faults in this file send without haste or without end, until the client
// gives up.

const (
	// writeTimeout ends what is sent to a client who neither reads nor gives up.
	writeTimeout = 10 * time.Second

	bombMembers = 1 << 10 // of a mebibyte each
)

func deliverDrip(w http.ResponseWriter, r *http.Request, f Fault, ans answer) {
	w.Header().Set("Content-Type", contentType)
	for _, b := range encode(ans) {
		if r.Context().Err() != nil {
			return
		}
		_, _ = w.Write([]byte{b})                 // the client may be gone
		_ = http.NewResponseController(w).Flush() // as above
		wait(r.Context(), cmp.Or(f.Hang, time.Second))
	}
}

// deliverHeaders takes the connection over, because net/http sends the headers of
// an answer only once they are complete.
func deliverHeaders(w http.ResponseWriter, _ *http.Request, _ Fault, _ answer) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	send := func(text string) error {
		if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		_, err := conn.Write([]byte(text))
		return err
	}
	filler := strings.Repeat("x", 4000)
	err = send("HTTP/1.1 200 OK\r\n")
	for i := 0; err == nil; i++ {
		err = send(fmt.Sprintf("X-Filler-%d: %s\r\n", i, filler))
	}
}

func deliverInterim(w http.ResponseWriter, r *http.Request, _ Fault, _ answer) {
	control := http.NewResponseController(w)
	w.Header().Set("X-Filler", strings.Repeat("x", 4000))
	for r.Context().Err() == nil {
		if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			break
		}
		w.WriteHeader(http.StatusEarlyHints)
	}
	panic(http.ErrAbortHandler)
}

// mebibyte is a mebibyte of spaces in gzip.
var mebibyte = sync.OnceValue(func() []byte {
	return zipped(bytes.Repeat([]byte(" "), 1<<20))
})

// deliverGzipBomb makes use of that the parts of a gzip stream are one text to its
// reader.
func deliverGzipBomb(w http.ResponseWriter, _ *http.Request, _ Fault, ans answer) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Encoding", "gzip")
	_, err := w.Write(zipped(encode(ans)))
	for i := 0; i < bombMembers && err == nil; i++ {
		_, err = w.Write(mebibyte())
	}
}

func zipped(text []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(text) // a buffer takes everything
	_ = z.Close()        // as above
	return b.Bytes()
}
