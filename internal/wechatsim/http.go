package wechatsim

import (
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"
)

const contentType = "application/json; encoding=utf-8"

// Start serves s on a free loopback port until stop is called, as [Sim.Serve]
// does. The base URL has no trailing slash.
func (s *Sim) Start() (baseURL string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	return "http://" + l.Addr().String(), s.Serve(l), nil
}

// Serve serves s on l in the background. Calling stop closes l and all
// connections, and waits until the calls that they carried have ended.
func (s *Sim) Serve(l net.Listener) (stop func()) { return Serve(l, s) }

// Serve is [Sim.Serve] for a platform that answers in a way of its own.
func Serve(l net.Listener, platform http.Handler) (stop func()) {
	var serving sync.WaitGroup // the listener and each connection
	srv := &http.Server{
		Handler:           platform,
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				serving.Add(1)
			case http.StateClosed, http.StateHijacked:
				serving.Done()
			}
		},
	}
	serving.Go(func() {
		_ = srv.Serve(l)
		_ = srv.Close() // the connection that was accepted while stop closed the others
	})
	return func() {
		_ = srv.Close()
		serving.Wait()
	}
}

// ServeHTTP serves the platform's API and, below /_sim/, the control over HTTP,
// which [ControlHelp] documents. Some faults end in a panic with
// [http.ErrAbortHandler], which an [http.Server] takes as the order to cut the
// connection.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mux.ServeHTTP(w, r)
}

func (s *Sim) routes() {
	for name, api := range apis {
		s.mux.HandleFunc(api.path, s.serve(name))
	}
	s.controlRoutes()
}

// writeJSON answers v as JSON.
func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, encode(v))
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// encode returns the JSON of v, which must be of a type and value that has one.
func encode(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return body
}
