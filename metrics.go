package wechat

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// metrics counts what happens on a mount, from its start on. Counting never waits, so it
// is done under any lock. What a mount is like at one moment is looked at when the
// metrics are read, see path_metrics.go.
//
// Labels hold names of accounts, errcodes, and words of this package: never anything
// that a secret, a token, a request ID or an IP could be part of.
type metrics struct {
	registry *prometheus.Registry // of this mount alone

	reads      results // of tokens
	reports    results // of tokens that applications say are rejected
	refreshes  results // normal calls that the engine makes for itself, not to verify a write
	forced     results // refreshes
	signatures results

	// logins are those of code2session/ and oauth2/.
	logins struct {
		answered   *prometheus.CounterVec // by api and result, whether or not WeChat was asked for it
		inFlight   prometheus.Gauge       // at WeChat
		turnedAway prometheus.Counter     // no place came free within request_timeout
	}

	eventsDropped prometheus.Counter

	calls           *prometheus.CounterVec   // of WeChat, by api, result and errcode
	durations       *prometheus.HistogramVec // of those calls, by api
	storageFailures *prometheus.CounterVec   // by operation
}

// results are the counters of one metric, by its label result. That of a cached read
// costs one look-up and one atomic addition.
type results map[string]prometheus.Counter

// count counts a request about an account by what came of it. known says that there is
// the account.
func (r results) count(known bool, err error, result string) {
	switch {
	case err != nil:
		result = "failed"
	case !known:
		result = "unknown"
	}
	r[result].Inc()
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

	m.reads = m.results("token_reads_total", "Reads of token/, by result: cached (from memory), fetched (waited for WeChat or storage), failed, unknown (no such account).",
		"cached", "fetched", "failed", "unknown")
	m.reports = m.results("reports_total", "Tokens that applications reported as rejected, by result: changed (there is another token), unchanged (WeChat still accepts it), failed, unknown (no such account).",
		"changed", "unchanged", "failed", "unknown")
	m.refreshes = m.results("refreshes_total", "Normal refreshes, by result: replaced (a new token), outside (a new token long before the old one's end: another caller forces; also where a verified write of config/ finds it), confirmed (the same token), failed.",
		"replaced", "outside", "confirmed", "failed")
	m.forced = m.results("forced_refreshes_total", "Forced refreshes, by result: replaced (a new token), same (WeChat handed out the old one), lost (what became of it is not known), refused (it certainly did nothing), limited (spacing or budget forbade it), prevented (it was not made: storage failed, or a normal call that had to come first).",
		"replaced", "same", "lost", "refused", "limited", "prevented")
	m.signatures = m.results("signatures_total", "Signatures asked of sign/, by result: signed, failed, unknown (no such account).",
		"signed", "failed", "unknown")

	m.logins.answered = m.counters("exchanges_total", "Requests of code2session/ and oauth2/ that were not turned away, by api and result: ok, cancelled, or the class of what went wrong. Those answered without asking WeChat count, too.", "api", "result")
	m.logins.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{Name: metricPrefix + "exchanges_in_flight", Help: "Logins that are at WeChat right now."})
	m.logins.turnedAway = m.counter("exchanges_turned_away_total", "Logins answered 503 because no place came free in time.")
	for _, a := range []string{apiCode2Session, apiOAuth2} {
		m.logins.answered.WithLabelValues(a, upstream.ResultOK)
		for _, c := range upstream.Classes {
			m.logins.answered.WithLabelValues(a, string(c))
		}
	}

	m.eventsDropped = m.counter("events_dropped_total", "Events that were not sent because too many were waiting.")

	m.calls = m.counters("calls_total", "Calls of WeChat, by api, result (ok, cancelled, or the class of what went wrong) and errcode (none if WeChat gave none, other if it is not documented).", "api", "result", "errcode")
	m.durations = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: metricPrefix + "call_duration_seconds", Help: "Time that a call of WeChat took, whatever came of it.", Buckets: callBuckets,
	}, []string{"api"})
	for _, a := range apis {
		m.calls.WithLabelValues(a, upstream.ResultOK, errcodeNone)
		m.calls.WithLabelValues(a, string(upstream.ClassQuota), errcodeLabel(a, errcodeQuota))
		m.durations.WithLabelValues(a)
	}
	m.calls.WithLabelValues(apiStableToken, string(upstream.ClassQuota), errcodeLabel(apiStableToken, errcodeMinuteQuota))

	m.storageFailures = m.counters("storage_failures_total", "Operations of Vault's storage that failed, by operation.", "operation")
	for _, operation := range []string{"list", "get", "put", "delete"} {
		m.storageFailures.WithLabelValues(operation)
	}

	m.registry.MustRegister(m.logins.inFlight, m.durations)
	return m
}

// metricPrefix begins the name of every metric.
const metricPrefix = "wechat_"

func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *metrics) results(name, help string, all ...string) results {
	vec, r := m.counters(name, help, "result"), results{}
	for _, result := range all {
		r[result] = vec.WithLabelValues(result)
	}
	return r
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: metricPrefix + name, Help: help})
	m.registry.MustRegister(c)
	return c
}

// called counts a call of WeChat that is over.
func (m *metrics) called(c upstream.Observed) {
	m.calls.WithLabelValues(c.API, c.Result, errcodeLabel(c.API, c.Errcode)).Inc()
	m.durations.WithLabelValues(c.API).Observe(c.Duration.Seconds())
}

// loggedIn counts a login that ended in err. One without a place is counted as such, and
// nothing else.
func (m *metrics) loggedIn(a string, err error) {
	result := upstream.ResultOK
	switch p := problemOf(err); {
	case p != nil && p.Status == http.StatusServiceUnavailable: // for want of a place, and nothing else
		m.logins.turnedAway.Inc()
		return
	case p != nil:
		result = string(p.Class)
	case err != nil:
		result = upstream.ResultCancelled
	}
	m.logins.answered.WithLabelValues(a, result).Inc()
}

// refreshed counts a normal refresh that brought a token. outside says that it shows a
// replacement from outside.
func (m *metrics) refreshed(changed, outside bool) {
	switch {
	case outside:
		m.refreshes["outside"].Inc()
	case changed:
		m.refreshes["replaced"].Inc()
	default:
		m.refreshes["confirmed"].Inc()
	}
}

// forcedTo counts a forced refresh that brought a token.
func (m *metrics) forcedTo(changed bool) {
	if changed {
		m.forced["replaced"].Inc()
	} else {
		m.forced["same"].Inc()
	}
}

// errcodeLabel is how an errcode is shown: a server in WeChat's place must not be able to
// make as many time series as there are numbers.
func errcodeLabel(a string, errcode int) string {
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
