//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
)

// settling is how long a slice's load runs before it is measured.
const settling = 50 * time.Millisecond

// load holds the connections to Vault and to WeChat. They stay open, and all
// subjects use the same ones. What it does per request is kept small, because it
// shares the processors with what it measures.
type load struct {
	vault    *vault
	toVault  []*conn
	toWeChat []*conn
}

// newLoad connects, and tries every subject: what fails does so before anything is
// measured.
func newLoad(ctx context.Context, v *vault) (*load, error) {
	l := &load{vault: v}
	for range longest() {
		// A connection that is idle for ten seconds before its first request is closed,
		// but later it may be so for five minutes.
		for server, first := range map[*[]*conn]int{&l.toVault: lookupSelf, &l.toWeChat: direct} {
			if err := l.connect(ctx, server, first); err != nil {
				l.close()
				return nil, err
			}
		}
	}
	for s, subject := range subjects {
		if s == before && !v.hasBefore() {
			continue
		}
		if err := l.connsOf(s)[0].ask(v.requests[s]); err != nil {
			l.close()
			return nil, fmt.Errorf("%s: %w", subject.name[english], err)
		}
	}
	return l, nil
}

// connect opens a connection, and sends a subject's request over it.
func (l *load) connect(ctx context.Context, conns *[]*conn, first int) error {
	address := l.vault.Address()
	if first == direct {
		address = l.vault.platform.baseURL
	}
	tcp, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(address, "http://"))
	if err != nil {
		return err
	}
	c := &conn{tcp: tcp, reader: bufio.NewReader(tcp)}
	*conns = append(*conns, c)
	if err := tcp.SetDeadline(time.Now().Add(vaulttest.Patience)); err != nil {
		return err
	}
	return c.ask(l.vault.requests[first])
}

// connsOf returns the connections that a subject uses.
func (l *load) connsOf(s int) []*conn {
	if s == direct {
		return l.toWeChat
	}
	return l.toVault
}

func (l *load) close() {
	for _, c := range slices.Concat(l.toVault, l.toWeChat) {
		_ = c.tcp.Close()
	}
}

// slice asks for the given time, and adds the result to t. Any answer that is not
// the right one is an error. wechat is how long WeChat takes for each: the
// connections then begin one after the other within half of that, as users would.
func (l *load) slice(ctx context.Context, t *tally, c cell, length, wechat time.Duration) error {
	start := time.Now()
	begin := start.Add(settling + wechat)
	end := begin.Add(length)
	request := l.vault.requests[c.subject]
	var askers errgroup.Group
	latencies := make([][]time.Duration, c.connections)
	for i, conn := range l.connsOf(c.subject)[:c.connections] {
		if err := conn.tcp.SetDeadline(end.Add(vaulttest.Patience)); err != nil {
			return err
		}
		askers.Go(func() error {
			time.Sleep(time.Until(start.Add(time.Duration(i) * wechat / time.Duration(2*c.connections))))
			for asked := time.Now(); asked.Before(end) && ctx.Err() == nil; {
				if err := conn.ask(request); err != nil {
					return err
				}
				answered := time.Now()
				if !answered.Before(begin) && answered.Before(end) {
					latencies[i] = append(latencies[i], answered.Sub(asked))
				}
				asked = answered
			}
			return nil
		})
	}
	time.Sleep(time.Until(begin))
	from, usedBefore := time.Now(), l.vault.cpu(c.subject)
	time.Sleep(time.Until(end))
	to, usedAfter := time.Now(), l.vault.cpu(c.subject)
	if err := askers.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t.latencies = append(t.latencies, slices.Concat(latencies...)...)
	t.elapsed += length
	// On busy processors the two readings are late, and not by the same.
	t.cpu = t.cpu.plus(usedAfter.minus(usedBefore).scaled(float64(length) / float64(to.Sub(from))))
	return nil
}

// conn is a connection that is kept alive, for one goroutine at a time.
type conn struct {
	tcp    net.Conn
	reader *bufio.Reader
	body   bytes.Buffer
}

// ask sends a request, and reads its answer, which has to hold the expected text.
func (c *conn) ask(r request) error {
	wire, expected := r.next()
	if _, err := c.tcp.Write(wire); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	c.body.Reset()
	_, err = c.body.ReadFrom(resp.Body)
	_ = resp.Body.Close()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the status is %s", resp.Status)
	case !bytes.Contains(c.body.Bytes(), []byte(expected)):
		return fmt.Errorf("the answer of %d bytes is not the expected one", c.body.Len())
	}
	return nil
}
