package wechat

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what happens on a mount, from its start on. Whoever counts may hold
// any lock: counting takes no other, and never waits. What a mount is like at one
// moment is not counted here but looked at when somebody asks, see path_metrics.go.
//
// Labels hold names of accounts, errcodes, and words of this package: never anything
// that a secret, a token, a request ID or an IP could be part of.
type metrics struct {
	registry *prometheus.Registry // of this mount alone

	// reads are the reads of tokens, by what came of them. Nearly every request is a
	// cached one: it costs one atomic addition.
	reads struct{ cached, fetched, failed, unknown prometheus.Counter }

	// reports are the tokens reported as rejected, by what came of it.
	reports struct{ changed, unchanged, failed, unknown prometheus.Counter }

	// refreshes are the normal calls for a token that the engine made for itself, by
	// what came of them. Of those that verify a write, which are none, they have what
	// somebody outside has replaced.
	refreshes struct{ replaced, outside, confirmed, failed prometheus.Counter }

	// forced are the forced refreshes, by what came of them.
	forced struct{ replaced, same, lost, refused, limited, prevented prometheus.Counter }

	exchanges  exchangeCounters
	signatures struct{ signed, failed, unknown prometheus.Counter }

	eventsDropped prometheus.Counter

	calls           *prometheus.CounterVec   // of WeChat, by api, result and errcode
	durations       *prometheus.HistogramVec // of those calls, by api
	storageFailures *prometheus.CounterVec   // by operation
}

// exchangeCounters count the logins that applications have made with the AppSecret.
type exchangeCounters struct {
	answered   *prometheus.CounterVec // by api and result, whether or not WeChat was asked for it
	inFlight   prometheus.Gauge       // at WeChat
	turnedAway prometheus.Counter     // no place came free within request_timeout
}

// done counts an exchange that ended in err. One without a place is counted as such,
// and nothing else.
func (e *exchangeCounters) done(a api, err error) {
	result := resultOK
	switch p := problemOf(err); {
	case p != nil && p.status == http.StatusServiceUnavailable: // for want of a place, and nothing else
		e.turnedAway.Inc()
		return
	case p != nil:
		result = string(p.class)
	case err != nil:
		result = resultCancelled
	}
	e.answered.WithLabelValues(string(a), result).Inc()
}

// Values of labels where there is nothing to name.
const (
	errcodeNone  = "none"  // WeChat gave no errcode
	errcodeOther = "other" // one that is not documented
)

// callBuckets are upper bounds of the time that a call of WeChat takes, in seconds.
// The longest request_timeout is the last.
var callBuckets = []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// newMetrics returns counters at zero. To Prometheus a series that begins with 1 has not
// grown: those whose growth the alerts look at are there from the beginning.
func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}

	reads := m.counters("token_reads_total", "Reads of token/, by result: cached (from memory), fetched (waited for WeChat or storage), failed, unknown (no such account).", "result")
	m.reads.cached, m.reads.fetched = reads.WithLabelValues("cached"), reads.WithLabelValues("fetched")
	m.reads.failed, m.reads.unknown = reads.WithLabelValues("failed"), reads.WithLabelValues("unknown")

	reports := m.counters("reports_total", "Tokens that applications reported as rejected, by result: changed (there is another token), unchanged (WeChat still accepts it), failed, unknown (no such account).", "result")
	m.reports.changed, m.reports.unchanged = reports.WithLabelValues("changed"), reports.WithLabelValues("unchanged")
	m.reports.failed, m.reports.unknown = reports.WithLabelValues("failed"), reports.WithLabelValues("unknown")

	refreshes := m.counters("refreshes_total", "Normal refreshes, by result: replaced (a new token), outside (a new token long before the old one's end: another caller forces; also where a verified write of config/ finds it), confirmed (the same token), failed.", "result")
	m.refreshes.replaced, m.refreshes.outside = refreshes.WithLabelValues("replaced"), refreshes.WithLabelValues("outside")
	m.refreshes.confirmed, m.refreshes.failed = refreshes.WithLabelValues("confirmed"), refreshes.WithLabelValues("failed")

	forced := m.counters("forced_refreshes_total", "Forced refreshes, by result: replaced (a new token), same (WeChat handed out the old one), lost (what became of it is not known), refused (it certainly did nothing), limited (spacing or budget forbade it), prevented (it was not made: storage failed, or a normal call that had to come first).", "result")
	m.forced.replaced, m.forced.same = forced.WithLabelValues("replaced"), forced.WithLabelValues("same")
	m.forced.lost, m.forced.refused = forced.WithLabelValues("lost"), forced.WithLabelValues("refused")
	m.forced.limited, m.forced.prevented = forced.WithLabelValues("limited"), forced.WithLabelValues("prevented")

	m.exchanges.answered = m.counters("exchanges_total", "Requests of code2session/ and oauth2/ that were not turned away, by api and result: ok, cancelled, or the class of what went wrong. Those answered without asking WeChat count, too.", "api", "result")
	m.exchanges.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{Name: metricPrefix + "exchanges_in_flight", Help: "Exchanges that are at WeChat right now."})
	m.exchanges.turnedAway = m.counter("exchanges_turned_away_total", "Exchanges answered 503 because no place came free in time.")
	for _, a := range []api{apiCode2Session, apiOAuth2} {
		m.exchanges.answered.WithLabelValues(string(a), resultOK)
		for _, c := range classes {
			m.exchanges.answered.WithLabelValues(string(a), string(c))
		}
	}

	signatures := m.counters("signatures_total", "Signatures asked of sign/, by result: signed, failed, unknown (no such account).", "result")
	m.signatures.signed, m.signatures.failed = signatures.WithLabelValues("signed"), signatures.WithLabelValues("failed")
	m.signatures.unknown = signatures.WithLabelValues("unknown")

	m.eventsDropped = m.counter("events_dropped_total", "Events that were not sent because too many were waiting.")

	m.calls = m.counters("calls_total", "Calls of WeChat, by api, result (ok, cancelled, or the class of what went wrong) and errcode (none if WeChat gave none, other if it is not documented).", "api", "result", "errcode")
	m.durations = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: metricPrefix + "call_duration_seconds", Help: "Time that a call of WeChat took, whatever came of it.", Buckets: callBuckets,
	}, []string{"api"})
	for _, a := range apis {
		m.calls.WithLabelValues(string(a), resultOK, errcodeNone)
		m.calls.WithLabelValues(string(a), string(classQuota), errcodeLabel(a, errcodeQuota))
		m.durations.WithLabelValues(string(a))
	}
	m.calls.WithLabelValues(string(apiStableToken), string(classQuota), errcodeLabel(apiStableToken, errcodeMinuteQuota))

	m.storageFailures = m.counters("storage_failures_total", "Operations of Vault's storage that failed, by operation.", "operation")
	for _, operation := range []string{"list", "get", "put", "delete"} {
		m.storageFailures.WithLabelValues(operation)
	}

	m.registry.MustRegister(m.exchanges.inFlight, m.durations)
	return m
}

// metricPrefix begins the name of every metric.
const metricPrefix = "wechat_"

func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: metricPrefix + name, Help: help})
	m.registry.MustRegister(c)
	return c
}

// called counts a call of WeChat that is over.
func (m *metrics) called(c observedCall) {
	m.calls.WithLabelValues(string(c.api), c.result, errcodeLabel(c.api, c.errcode)).Inc()
	m.durations.WithLabelValues(string(c.api)).Observe(c.duration.Seconds())
}

// read counts a read of a token. cached says that memory answered it, known that there
// is the account.
func (m *metrics) read(cached, known bool, err error) {
	switch {
	case err != nil:
		m.reads.failed.Inc()
	case cached:
		m.reads.cached.Inc()
	case known:
		m.reads.fetched.Inc()
	default:
		m.reads.unknown.Inc()
	}
}

// signed counts a request for a signature, as read does.
func (m *metrics) signed(known bool, err error) {
	switch {
	case err != nil:
		m.signatures.failed.Inc()
	case known:
		m.signatures.signed.Inc()
	default:
		m.signatures.unknown.Inc()
	}
}

// reported counts a report of a rejected token.
func (m *metrics) reported(known, changed bool, err error) {
	switch {
	case err != nil:
		m.reports.failed.Inc()
	case !known:
		m.reports.unknown.Inc()
	case changed:
		m.reports.changed.Inc()
	default:
		m.reports.unchanged.Inc()
	}
}

// refreshed counts a normal refresh that brought a token. outside says that it shows a
// replacement by somebody outside.
func (m *metrics) refreshed(changed, outside bool) {
	switch {
	case outside:
		m.refreshes.outside.Inc()
	case !changed:
		m.refreshes.confirmed.Inc()
	default:
		m.refreshes.replaced.Inc()
	}
}

// forcedTo counts a forced refresh that brought a token.
func (m *metrics) forcedTo(changed bool) {
	if changed {
		m.forced.replaced.Inc()
	} else {
		m.forced.same.Inc()
	}
}

// errcodeLabel is how an errcode is shown: whoever answers in WeChat's place must not
// be able to make as many time series as there are numbers.
func errcodeLabel(a api, errcode int) string {
	if errcode == 0 {
		return errcodeNone
	}
	if _, documented := ruleOf(a, errcode); !documented {
		return errcodeOther
	}
	return strconv.Itoa(errcode)
}

// watched is storage whose failures are counted. Storage that is watched already is
// returned as it is, so that no failure counts twice.
func (m *metrics) watched(s logical.Storage) logical.Storage {
	switch s.(type) {
	case nil, *watchedStorage: // there is none at registration
		return s
	}
	return &watchedStorage{s, m.storageFailures}
}

type watchedStorage struct {
	logical.Storage
	failures *prometheus.CounterVec
}

// count passes err on. That the caller went away is no failure of storage.
func (w *watchedStorage) count(ctx context.Context, operation string, err error) error {
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		w.failures.WithLabelValues(operation).Inc()
	}
	return err
}

// List, Get, Put and Delete are those of the storage below.
func (w *watchedStorage) List(ctx context.Context, prefix string) ([]string, error) {
	keys, err := w.Storage.List(ctx, prefix)
	return keys, w.count(ctx, "list", err)
}

func (w *watchedStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	entry, err := w.Storage.Get(ctx, key)
	return entry, w.count(ctx, "get", err)
}

func (w *watchedStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	return w.count(ctx, "put", w.Storage.Put(ctx, entry))
}

func (w *watchedStorage) Delete(ctx context.Context, key string) error {
	return w.count(ctx, "delete", w.Storage.Delete(ctx, key))
}
