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

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
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
	families, err := b.keeper.metrics.registry.Gather()
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
// pays for each. The others are counted.
const maxListed = 1000

// stateUnloaded is the state of an account that is being loaded, or that storage does
// not give.
const stateUnloaded = "unloaded"

// What a mount is like at one moment.
var (
	descBuild       = desc("build_info", "Always 1; the labels tell the plugin's version and the Go version that built it.", "version", "goversion")
	descAccounts    = desc("accounts", "Accounts, by state; unloaded is one that storage has not given yet.", "state")
	descLastError   = desc("accounts_last_error", "Accounts whose last attempt to get or to store a token failed, by class of what went wrong.", "class")
	descDue         = desc("accounts_due", "Accounts, and tickets of theirs, that are due to be looked at and wait for a worker.")
	descLag         = desc("accounts_due_lag_seconds", "How long the one of them that waits longest has been due.")
	descRevocations = desc("revocations_pending", "Accounts whose leak response still waits for a forced refresh.")

	descRemaining = desc("token_remaining_seconds", "Seconds that the account's token may still be handed out; 0 if there is none to hand out. An account whose token was never read has none of this.", "account")
	descSuccess   = desc("last_success_timestamp_seconds", "When WeChat last answered with a token, since the plugin started.", "account")
	descFailures  = desc("consecutive_failures", "Attempts to get or to store a token that failed since the last one that did not.", "account")
	descBudget    = desc("forced_refreshes_remaining", "Forced refreshes left in the rolling 24 hours; accounts with the same appid share them.", "account")

	descUnlisted = desc("unlisted_accounts", "Accounts beyond the 1,000 that have time series of their own.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricPrefix+name, help, labels, nil)
}

func gauge(into chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	into <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// Describe is for prometheus.Collector. It tells nothing in advance, since what is
// collected depends on the accounts.
func (k *keeper) Describe(chan<- *prometheus.Desc) {}

// Collect is for prometheus.Collector. It keeps nothing: an account that was deleted is in
// no answer any more.
func (k *keeper) Collect(into chan<- prometheus.Metric) {
	now := wallClock()
	all, revoking := k.portraits()
	gauge(into, descBuild, 1, Version, runtime.Version())
	gauge(into, descRevocations, float64(revoking))
	due, since := k.schedule.Waiting()
	gauge(into, descDue, float64(due))
	lag := time.Duration(0)
	if due > 0 {
		lag = max(0, now.Sub(since))
	}
	gauge(into, descLag, lag.Seconds())
	countAccounts(into, all)
	listAccounts(into, all)
}

// countAccounts tells how many accounts there are of each state and error.
func countAccounts(into chan<- prometheus.Metric, all []portrait) {
	states := map[string]int{statePending: 0, stateHealthy: 0, stateDegraded: 0, stateFailing: 0, stateUnloaded: 0}
	failed := map[class]int{}
	for _, p := range all {
		states[p.state]++
		failed[p.lastError]++
	}
	for state, n := range states {
		gauge(into, descAccounts, float64(n), state)
	}
	for _, c := range upstream.Classes {
		gauge(into, descLastError, float64(failed[c]), string(c))
	}
}

// listAccounts tells of the accounts one by one, the worst first, and counts the rest.
func listAccounts(into chan<- prometheus.Metric, all []portrait) {
	all = slices.DeleteFunc(all, func(p portrait) bool { return p.state == stateUnloaded })
	slices.SortFunc(all, portrait.compare)
	listed := all[:min(len(all), maxListed)]
	gauge(into, descUnlisted, float64(len(all)-len(listed)))
	for _, p := range listed {
		if p.state != statePending {
			gauge(into, descRemaining, p.remaining.Seconds(), p.name)
		}
		if !p.lastSuccess.IsZero() {
			gauge(into, descSuccess, unixSeconds(p.lastSuccess), p.name)
		}
		gauge(into, descFailures, float64(p.failures), p.name)
		if p.forcible {
			gauge(into, descBudget, float64(p.budget), p.name)
		}
	}
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// portrait is what the metrics tell of one account.
type portrait struct {
	name        string
	state       string
	remaining   time.Duration // that the token may still be handed out
	lastSuccess time.Time     // zero if there was none since the plugin started
	failures    int
	lastError   class // of the failure that status/ shows, "" if there is none
	forcible    bool  // it is replaced on demand
	budget      int   // forced refreshes left
}

// portraits returns one of every account in memory, and how many of them have a
// revocation pending.
func (k *keeper) portraits() (all []portrait, revoking int) {
	k.mu.RLock()
	doors := slices.Collect(maps.Values(k.doors))
	k.mu.RUnlock()
	for _, d := range doors {
		v := d.account.Load()
		if v == nil || v.holder.state.Load() == nil {
			all = append(all, portrait{name: d.name, state: stateUnloaded})
			continue
		}
		seen := v.look(tokenSlot)
		if seen.revoking() {
			revoking++
		}
		p := portrait{name: d.name, state: seen.health(), lastSuccess: seen.st.Answered, forcible: seen.forcible(), budget: seen.budget()}
		if seen.st.Usable(seen.now) {
			p.remaining = seen.st.Left(seen.now)
		}
		if f := seen.trouble(); f != nil {
			p.failures, p.lastError = f.Count, f.Class
		}
		all = append(all, p)
	}
	return all, revoking
}

// severity says which states come first where there is no room for all.
var severity = map[string]int{stateFailing: 0, stateDegraded: 1, stateHealthy: 2, statePending: 3}

// compare puts the worst state first, and in it the fewest forced refreshes left. Accounts
// that are well are in the order of their names: it is always the same ones that have time
// series.
func (p portrait) compare(other portrait) int {
	return cmp.Or(cmp.Compare(severity[p.state], severity[other.state]), cmp.Compare(p.budget, other.budget), cmp.Compare(p.name, other.name))
}

const metricsHelp = `
Reading metrics gives Prometheus text for the whole mount: reads of tokens, calls
of WeChat, refreshes, accounts by state, and for up to 1,000 accounts, the worst
first, the seconds that their tokens still live. Scrape it with a Vault token that
may read this path:

    $ curl -H "X-Vault-Token: $VAULT_TOKEN" $VAULT_ADDR/v1/wechat/metrics

Counters begin with the plugin's process and belong to the active node.
`
