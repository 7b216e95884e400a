package wechat

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// metricsType is the content type of the answer, which every Prometheus takes.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

func (b *backend) metricsPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:         "metrics$",
		HelpSynopsis:    "Metrics of this mount, for Prometheus.",
		HelpDescription: metricsHelp,
		DisplayAttrs:    &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.onActive(&framework.PathOperation{
				Callback:     b.readMetrics,
				Summary:      "Read the mount's metrics as Prometheus text.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "read", OperationSuffix: "metrics"},
				Responses:    map[int][]framework.Response{http.StatusOK: {{Description: "Prometheus text", MediaType: "text/plain"}}},
			}),
		},
	}}
}

func (b *backend) readMetrics(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	now := prometheus.NewRegistry()
	if err := now.Register(mountCollector{b.keeper}); err != nil {
		return nil, err
	}
	families, err := prometheus.Gatherers{b.keeper.metrics.registry, now}.Gather()
	var text bytes.Buffer
	for _, family := range families {
		_, failed := expfmt.MetricFamilyToText(&text, family)
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: metricsType,
		logical.HTTPRawBody:     text.String(),
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

// maxListed is how many accounts of a mount have time series of their own: Prometheus
// pays for each. Of the others there is a sum.
const maxListed = 1000

// stateUnloaded is the state of an account that is being loaded, or that storage does
// not give.
const stateUnloaded = "unloaded"

// What a mount is like at one moment. The listed accounts are told one by one, the
// unlisted ones together.
var (
	descBuild       = desc("build_info", "Always 1; the labels tell the plugin's version and the Go version that built it.", "version", "goversion")
	descAccounts    = desc("accounts", "Accounts, by state; unloaded is one that storage has not given yet.", "state")
	descLastError   = desc("accounts_last_error", "Accounts whose last attempt to get or to store a token failed, by class of what went wrong.", "class")
	descDue         = desc("accounts_due", "Accounts, and tickets of theirs, that are due to be looked at and wait for a worker.")
	descLag         = desc("accounts_due_lag_seconds", "How long the one of them that waits longest has been due.")
	descRevocations = desc("revocations_pending", "Accounts whose leak response still waits for a forced refresh.")

	descRemaining = desc("token_remaining_seconds", "Seconds that the account's token may still be handed out; 0 if there is none to hand out. An account that nobody has asked for a token has none of this.", "account")
	descSuccess   = desc("last_success_timestamp_seconds", "When WeChat last answered with a token, since the plugin started.", "account")
	descFailures  = desc("consecutive_failures", "Attempts to get or to store a token that failed since the last one that did not.", "account")
	descBudget    = desc("forced_refreshes_remaining", "Forced refreshes left in the rolling 24 hours; accounts with the same appid share them.", "account")

	descUnlisted          = desc("unlisted_accounts", "Accounts beyond the 1,000 that have time series of their own.")
	descUnlistedRemaining = desc("unlisted_token_remaining_seconds", "The least of token_remaining_seconds among the unlisted accounts.")
	descUnlistedSuccess   = desc("unlisted_last_success_timestamp_seconds", "The oldest of last_success_timestamp_seconds among the unlisted accounts.")
	descUnlistedFailures  = desc("unlisted_consecutive_failures", "The sum of consecutive_failures of the unlisted accounts.")
	descUnlistedBudget    = desc("unlisted_forced_refreshes_remaining", "The least of forced_refreshes_remaining among the unlisted accounts.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricPrefix+name, help, labels, nil)
}

// mountCollector collects what a mount is like when it is asked. It keeps nothing: an
// account that was deleted is in no answer any more.
type mountCollector struct{ keeper *keeper }

// Describe is for prometheus.Collector. It tells nothing in advance, since what is
// collected depends on the accounts.
func (m mountCollector) Describe(chan<- *prometheus.Desc) {}

// Collect is for prometheus.Collector.
func (m mountCollector) Collect(into chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		into <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(descBuild, 1, Version, runtime.Version())
	now := wallClock()
	all, revoking := m.keeper.portraits(now)
	states := map[string]int{statePending: 0, stateHealthy: 0, stateDegraded: 0, stateFailing: 0, stateUnloaded: 0}
	failed := map[class]int{}
	for _, p := range all {
		states[p.state]++
		failed[p.lastError]++
	}
	for state, n := range states {
		gauge(descAccounts, float64(n), state)
	}
	for _, c := range classes {
		gauge(descLastError, float64(failed[c]), string(c))
	}
	gauge(descRevocations, float64(revoking))
	due, since := m.keeper.schedule.waiting()
	lag := time.Duration(0)
	if due > 0 {
		lag = max(0, now.Sub(since))
	}
	gauge(descDue, float64(due))
	gauge(descLag, lag.Seconds())

	all = slices.DeleteFunc(all, func(p portrait) bool { return p.state == stateUnloaded })
	slices.SortFunc(all, portrait.compare)
	listed, unlisted := all[:min(len(all), maxListed)], all[min(len(all), maxListed):]
	for _, p := range listed {
		if p.state != statePending {
			gauge(descRemaining, p.remaining.Seconds(), p.name)
		}
		if !p.lastSuccess.IsZero() {
			gauge(descSuccess, unixSeconds(p.lastSuccess), p.name)
		}
		gauge(descFailures, float64(p.failures), p.name)
		gauge(descBudget, float64(p.budget), p.name)
	}
	gauge(descUnlisted, float64(len(unlisted)))
	if len(unlisted) == 0 {
		return
	}
	rest := sum(unlisted)
	if rest.state != statePending {
		gauge(descUnlistedRemaining, rest.remaining.Seconds())
	}
	if !rest.lastSuccess.IsZero() {
		gauge(descUnlistedSuccess, unixSeconds(rest.lastSuccess))
	}
	gauge(descUnlistedFailures, float64(rest.failures))
	gauge(descUnlistedBudget, float64(rest.budget))
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// portrait is what the metrics tell of one account, or of several together.
type portrait struct {
	name        string
	state       string
	remaining   time.Duration // that the token may still be handed out
	lastSuccess time.Time     // zero if there was none since the plugin started
	failures    int
	lastError   class // of the failure that status/ shows, "" if there is none
	budget      int   // forced refreshes left
}

// portraits returns one of every account in memory, and how many of them have a
// revocation pending.
func (k *keeper) portraits(now time.Time) (all []portrait, revoking int) {
	k.mu.RLock()
	accounts := slices.Collect(maps.Values(k.accounts))
	k.mu.RUnlock()
	for _, a := range accounts {
		if a.revocation.Load() != nil {
			revoking++
		}
		st := a.current()
		if st == nil {
			all = append(all, portrait{name: a.name, state: stateUnloaded})
			continue
		}
		p := portrait{name: a.name, state: st.health(now), lastSuccess: st.lastSuccess, budget: st.budget()}
		if st.usable(now) {
			p.remaining = st.left(now)
		}
		if f := st.trouble(); f != nil {
			p.failures, p.lastError = f.count, f.class
		}
		all = append(all, p)
	}
	return all, revoking
}

// severity says which states come first where there is no room for all.
var severity = map[string]int{stateFailing: 0, stateDegraded: 1, stateHealthy: 2, statePending: 3}

// compare puts the worst first. Accounts that are well are in the order of their
// names, so that it is always the same ones that have time series.
func (p portrait) compare(other portrait) int {
	c := cmp.Compare(severity[p.state], severity[other.state])
	if c == 0 && p.state == stateDegraded {
		c = cmp.Compare(p.remaining, other.remaining)
	}
	return cmp.Or(c, cmp.Compare(p.name, other.name))
}

// sum is several accounts in one: their worst state, the least and oldest of their
// times, the least of their budgets, and all of their failures. There has to be one, and
// the worst comes first.
func sum(all []portrait) portrait {
	rest := portrait{state: all[0].state, remaining: all[0].remaining, budget: all[0].budget}
	for _, p := range all {
		if p.state != statePending {
			rest.remaining = min(rest.remaining, p.remaining)
		}
		if !p.lastSuccess.IsZero() && (rest.lastSuccess.IsZero() || p.lastSuccess.Before(rest.lastSuccess)) {
			rest.lastSuccess = p.lastSuccess
		}
		rest.failures += p.failures
		rest.budget = min(rest.budget, p.budget)
	}
	return rest
}

const metricsHelp = `
Reading metrics gives Prometheus text for the whole mount: reads of tokens, calls
of WeChat, refreshes, accounts by state, and for up to 1,000 accounts, the worst
first, the seconds that their tokens still live. Scrape it with a Vault token that
may read this path:

    $ curl -H "X-Vault-Token: $VAULT_TOKEN" $VAULT_ADDR/v1/wechat/metrics

Counters begin with the plugin's process and belong to the active node.
`
