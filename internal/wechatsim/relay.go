package wechatsim

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// MaxFirstRecord is the length in bytes above which a [Relay] swallows a first
// record. Go's ClientHello is longer with its post-quantum key share, and shorter
// without.
const MaxFirstRecord = 1400

const (
	recordHeader    = 5    // bytes before the content of a TLS record
	recordHandshake = 0x16 // its first byte, in a ClientHello
)

// Relay passes TCP connections on to one address, as a path does on which large
// packets get lost: of a connection that begins with a TLS record above
// [MaxFirstRecord] nothing arrives, and nothing ever comes back.
type Relay struct {
	listener  net.Listener
	target    string
	swallowed atomic.Int64
	serving   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // that are open; nil once the relay is closed
}

// StartRelay relays from a free loopback port to target, a host and port, until
// [Relay.Close].
func StartRelay(target string) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: l, target: target, conns: map[net.Conn]bool{}}
	r.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.serving.Go(func() { r.relay(conn) })
		}
	})
	return r, nil
}

// Addr returns the host and port that the relay listens on.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Swallowed returns of how many connections the first record was swallowed.
func (r *Relay) Swallowed() int { return int(r.swallowed.Load()) }

// Close ends the relay and its connections, and waits for their end.
func (r *Relay) Close() {
	_ = r.listener.Close() // it may be closed already
	r.mu.Lock()
	for conn := range r.conns {
		_ = conn.Close() // it ends either way
	}
	r.conns = nil
	r.mu.Unlock()
	r.serving.Wait()
}

// relay serves one connection to its end.
func (r *Relay) relay(client net.Conn) {
	if !r.keep(client) {
		return
	}
	defer r.drop(client)
	header := make([]byte, recordHeader)
	n, err := io.ReadFull(client, header)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	if header[0] == recordHandshake && recordHeader+int(binary.BigEndian.Uint16(header[3:])) > MaxFirstRecord {
		r.swallowed.Add(1)
		_, _ = io.Copy(io.Discard, client) // until the client gives up
		return
	}
	server, err := net.Dial("tcp", r.target)
	if err != nil || !r.keep(server) {
		return
	}
	defer r.drop(server)
	var back sync.WaitGroup
	back.Go(func() { pass(client, server) })
	if _, err := server.Write(header[:n]); err == nil {
		pass(server, client)
	}
	back.Wait()
}

// pass copies one direction of a connection, and tells its end on.
func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from) // the end of either ends the connection
	if tcp, ok := to.(*net.TCPConn); ok {
		_ = tcp.CloseWrite() // it may be closed already
	}
}

// keep notes an open connection; it closes one that comes after the relay's end.
func (r *Relay) keep(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		_ = conn.Close() // it is not used
		return false
	}
	r.conns[conn] = true
	return true
}

func (r *Relay) drop(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = conn.Close() // it may be closed already
	delete(r.conns, conn)
}
