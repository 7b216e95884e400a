package wechatsim

import (
	"context"
	"net"
	"sync"
)

// Pipe is a network of its own, in memory: a [net.Listener], and the
// DialContext that reaches it whatever the address. Unlike sockets it lets the
// time of a testing/synctest bubble pass while both ends wait. Create it inside
// the bubble that uses it.
type Pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

// loopback is the address of both ends of every connection.
var loopback = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}

// NewPipe returns a Pipe that listens.
func NewPipe() *Pipe {
	return &Pipe{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// DialContext connects to the listener. It waits until the connection is accepted,
// the context ends or the listener is closed.
func (p *Pipe) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	var err error
	select {
	case p.conns <- pipeConn{server}:
		return pipeConn{client}, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-p.closed:
		err = net.ErrClosed
	}
	return nil, &net.OpError{Op: "dial", Net: network, Addr: loopback, Err: err}
}

// Accept waits for the next connection.
func (p *Pipe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: loopback, Err: net.ErrClosed}
	}
}

// Close stops listening; connections live on.
func (p *Pipe) Close() error {
	p.close.Do(func() { close(p.closed) })
	return nil
}

// Addr returns 127.0.0.1:80, the address at which all connections claim to end.
func (p *Pipe) Addr() net.Addr { return loopback }

// pipeConn is one end of a connection, with addresses that look like TCP's.
type pipeConn struct{ net.Conn }

func (pipeConn) LocalAddr() net.Addr  { return loopback }
func (pipeConn) RemoteAddr() net.Addr { return loopback }
