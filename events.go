package wechat

import (
	"context"
	"strconv"
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

// events hands the events of a mount to its host, one after the other and beside
// everything else. A host that has no events refuses them, which is logged at trace level
// only.
type events struct {
	log     hclog.Logger
	sender  logical.EventSender
	dropped prometheus.Counter
	waiting chan func(context.Context)
}

func newEvents(log hclog.Logger, sender logical.EventSender, dropped prometheus.Counter) *events {
	return &events{log, sender, dropped, make(chan func(context.Context), maxEvents)}
}

// send has an event of the account sent, with further metadata in pairs. It never waits:
// the caller may hold any lock. A subscriber needs the capability subscribe on the path,
// which is area and name, and finds there what the event is about.
func (e *events) send(kind, area, name string, more ...string) {
	metadata := append([]string{
		logical.EventMetadataModified, strconv.FormatBool(kind != eventRefreshFail),
		logical.EventMetadataOperation, kind,
		logical.EventMetadataPath, area + name,
		"name", name,
	}, more...)
	if kind != eventConfigDelete {
		metadata = append(metadata, logical.EventMetadataDataPath, area+name)
	}
	one := func(ctx context.Context) {
		if err := logical.SendEvent(ctx, e.sender, eventPrefix+kind, metadata...); err != nil {
			e.log.Trace("an event was not sent", "type", kind, "account", name, "error", err)
		}
	}
	select {
	case e.waiting <- one:
	default:
		e.dropped.Inc()
	}
}

// run sends what waits until ctx, the mount's, ends.
func (e *events) run(ctx context.Context) {
	for {
		var one func(context.Context)
		select {
		case <-ctx.Done():
		case one = <-e.waiting:
		}
		if ctx.Err() != nil {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, eventTimeout)
		one(bounded)
		cancel()
	}
}
