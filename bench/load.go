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

// load holds the connections to Vault. They stay open, and all reads use the
// same ones. What it does per request is kept small, because it shares the
// processors with what it measures.
type load struct {
	vault    *vault
	requests [][]byte // by subject
	conns    []*conn
}

// newLoad connects to Vault.
func newLoad(ctx context.Context, v *vault) (*load, error) {
	l := &load{vault: v}
	for _, s := range subjects {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.Address()+"/v1/"+s.path, http.NoBody)
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Vault-Request", "true") // as Vault's own client does
		req.Header.Set("X-Vault-Token", v.reader)
		var wire bytes.Buffer
		if err := req.Write(&wire); err != nil {
			return nil, err
		}
		l.requests = append(l.requests, wire.Bytes())
	}
	for range slices.Max(connections) {
		if err := l.connect(ctx); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// connect opens a connection, and reads every subject over it: Vault closes a
// connection that is idle for ten seconds before its first request, but gives it
// five minutes after that.
func (l *load) connect(ctx context.Context) error {
	tcp, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(l.vault.Address(), "http://"))
	if err != nil {
		return err
	}
	c := &conn{tcp: tcp, reader: bufio.NewReader(tcp)}
	l.conns = append(l.conns, c)
	if err := tcp.SetDeadline(time.Now().Add(vaulttest.Patience)); err != nil {
		return err
	}
	for i, s := range subjects {
		if err := c.get(l.requests[i], l.vault.expected[i]); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (l *load) close() {
	for _, c := range l.conns {
		_ = c.tcp.Close()
	}
}

// slice reads for the given time, and adds the result to t. Any answer that is
// not the right one is an error.
func (l *load) slice(ctx context.Context, t *tally, c cell, length time.Duration) error {
	begin := time.Now().Add(settling)
	end := begin.Add(length)
	var readers errgroup.Group
	latencies := make([][]time.Duration, c.connections)
	for i, conn := range l.conns[:c.connections] {
		if err := conn.tcp.SetDeadline(end.Add(vaulttest.Patience)); err != nil {
			return err
		}
		readers.Go(func() error {
			for asked := time.Now(); asked.Before(end) && ctx.Err() == nil; {
				if err := conn.get(l.requests[c.subject], l.vault.expected[c.subject]); err != nil {
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
	from, before := time.Now(), l.vault.cpu(c.subject)
	time.Sleep(time.Until(end))
	to, after := time.Now(), l.vault.cpu(c.subject)
	if err := readers.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t.latencies = append(t.latencies, slices.Concat(latencies...)...)
	t.elapsed += length
	// On busy processors the two readings are late, and not by the same.
	t.cpu = t.cpu.plus(after.minus(before).scaled(float64(length) / float64(to.Sub(from))))
	return nil
}

// conn is a connection that is kept alive, for one goroutine at a time.
type conn struct {
	tcp    net.Conn
	reader *bufio.Reader
	body   bytes.Buffer
}

// get sends a request, and reads its answer, which has to hold the expected text.
func (c *conn) get(request []byte, expected string) error {
	if _, err := c.tcp.Write(request); err != nil {
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
