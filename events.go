package wechat

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
)

// The events of an account. Vault shows them to subscribers under eventPrefix.
const (
	eventTokenRotate        = "token-rotate"        // there is another token
	eventRefreshFail        = "refresh-fail"        // an attempt to get one failed
	eventRevocationComplete = "revocation-complete" // the leaked token is dead
	eventConfigWrite        = "config-write"
	eventConfigDelete       = "config-delete"

	eventPrefix = "wechat/"
)

const (
	// eventTimeout bounds the sending of one event.
	eventTimeout = 5 * time.Second

	// maxEvents is how many events wait at most. Further ones are dropped: what they
	// tell is in status/ and in the server log, too.
	maxEvents = 1000
)

// events sends the events of a mount to its host, one after the other and beside
// everything else: whoever has one goes on at once, whatever locks it holds. A host
// that has no events refuses them, which is logged at trace level only.
type events struct {
	ctx     context.Context // ends with the mount, and with it the sending
	log     hclog.Logger
	sender  logical.EventSender
	busy    *sync.WaitGroup
	dropped prometheus.Counter

	mu      sync.Mutex // guards what follows
	waiting []event
	sending bool
}

// event is one event with Vault's conventional metadata. A subscriber has to have the
// capability subscribe on path, and finds what the event is about at dataPath.
type event struct {
	kind           string
	name           string // of the account
	path, dataPath string // below the mount; dataPath is empty where there is nothing to read
	modified       bool
	more           []string // further metadata, in pairs
}

// send has the event sent.
func (e *events) send(ev event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.ctx.Err() != nil:
		return
	case len(e.waiting) >= maxEvents:
		e.dropped.Inc()
		return
	}
	e.waiting = append(e.waiting, ev)
	if !e.sending {
		e.sending = true
		e.busy.Go(e.drain)
	}
}

// drain sends what waits, until there is no more.
func (e *events) drain() {
	for {
		e.mu.Lock()
		if len(e.waiting) == 0 || e.ctx.Err() != nil {
			e.waiting, e.sending = nil, false
			e.mu.Unlock()
			return
		}
		ev := e.waiting[0]
		e.waiting = e.waiting[1:]
		e.mu.Unlock()
		ctx, cancel := context.WithTimeout(e.ctx, eventTimeout)
		if err := logical.SendEvent(ctx, e.sender, eventPrefix+ev.kind, ev.metadata()...); err != nil {
			e.log.Trace("an event was not sent", "type", ev.kind, "account", ev.name, "error", err)
		}
		cancel()
	}
}

func (ev event) metadata() []string {
	pairs := []string{
		logical.EventMetadataModified, strconv.FormatBool(ev.modified),
		logical.EventMetadataOperation, ev.kind,
		logical.EventMetadataPath, ev.path,
		"name", ev.name,
	}
	if ev.dataPath != "" {
		pairs = append(pairs, logical.EventMetadataDataPath, ev.dataPath)
	}
	return append(pairs, ev.more...)
}
