//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// A real Prometheus scrapes the real Vault as the example configures it, takes the
// alerts, and has data for every query of the dashboard.
func TestPrometheusScrapesAndHasDataForTheDashboard(t *testing.T) {
	if !installed(t, "metrics, alerts and the dashboard with a real Prometheus", "prometheus", "promtool") {
		return
	}
	e := newEngine(t)
	well, ill := e.account(wechatsim.Account{}), e.account(wechatsim.Account{})
	e.configure(t, "demo", well)
	e.configure(t, "team-a/Shop_1.x", ill, fields{"verify": false})
	scraper := e.login(t, e.policy(t, "monitoring"))

	text := e.scrape(t, scraper.Token())
	promtool(t, strings.NewReader(text), "check", "metrics")

	p := e.prometheus(t, e.hide(scraper.Token()))
	eventually(t, vaulttest.Patience, "Prometheus scrapes", func() bool { return p.value(t, `up{job="wechat", mount="wechat"}`) == 1 })
	begin := time.Now()
	e.inject(ill, wechatsim.Fault{Kind: "errcode", Errcode: 40164, Errmsg: "invalid ip 203.0.113.9 ipv6 ::ffff:203.0.113.9, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394"})
	e.use(t, well)

	// Two scrapes after that, everything is there.
	eventually(t, vaulttest.Patience, "the alert of a failing account", func() bool {
		return p.value(t, `count(ALERTS{alertname="WechatAccountFailing", account="team-a/Shop_1.x"})`) == 1
	})
	eventually(t, vaulttest.Patience, "what happened is scraped", func() bool {
		return p.value(t, `sum(wechat_signatures_total{result="signed"})`) >= 1 && p.value(t, `timestamp(up{job="wechat"})`) > float64(begin.Unix()+3)
	})
	for title, query := range dashboardQueries(t) {
		if n := p.count(t, query); n == 0 {
			t.Errorf("the panel %q has no data: %s", title, query)
		}
	}
	for query, want := range map[string]float64{
		`wechat_token_remaining_seconds{account="team-a/Shop_1.x"}`:                0,
		`wechat_calls_total{errcode="40164", result="network admission"} > bool 0`: 1,
		`wechat_accounts{state="healthy"}`:                                         1,
		`wechat_accounts{state="failing"}`:                                         1,
		`wechat_exchanges_total{api="jscode2session", result="ok"}`:                1,
		`wechat_forced_refreshes_total{result="replaced"}`:                         1,
		`wechat_forced_refreshes_remaining{account="demo"}`:                        19,
	} {
		if got := p.value(t, query); got != want {
			t.Errorf("%s is %v, not %v", query, got, want)
		}
	}
	if text = e.scrape(t, scraper.Token()); strings.Contains(text, "203.0.113.9") || strings.Contains(text, "65f0a1b2") {
		t.Error("the metrics hold an IP or a rid")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, secret := range e.hidden {
		if strings.Contains(text, secret) {
			t.Error("the metrics hold a secret or a token")
		}
	}
}

// use has everything happen once that the dashboard shows.
func (e *engine) use(t *testing.T, account fields) {
	t.Helper()
	e.token(t, "demo")
	if _, err := e.readToken("team-a/Shop_1.x"); err == nil {
		t.Error("a token that WeChat refused")
	}
	for path, data := range map[string]fields{
		"refresh/demo":      {},
		"code2session/demo": {"js_code": e.hide(e.Mint(account["appid"].(string), wechatsim.Code{API: wechatsim.APICode2Session}).Code)},
		"sign/demo":         {"url": "https://shop.example.com/"},
		"rotate/demo":       {},
	} {
		_, err := e.vault.Logical().Write(e.path+"/"+path, data)
		must(t, err)
	}
}

// scrape reads the metrics as Prometheus does.
func (e *engine) scrape(t *testing.T, token string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.vault.Address()+"/v1/"+e.path+"/metrics", nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("%s %q: %s", resp.Status, resp.Header.Get("Content-Type"), body)
	}
	return string(body)
}

// promtool runs Prometheus's checker, which has to find nothing.
func promtool(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	check := exec.CommandContext(t.Context(), "promtool", args...)
	check.Stdin = stdin
	if said, err := check.CombinedOutput(); err != nil || bytes.Contains(said, []byte("error")) {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, said)
	}
}

// The rules are valid, each alert comes when it should and not before, and each of
// them links its entry in the runbook, which is there in both languages.
func TestEveryAlertIsTestedAndInTheRunbook(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	must(t, yaml.Unmarshal([]byte(example(t, "prometheus/rules.yml")), &rules))
	tests := example(t, "prometheus/rules_test.yml")
	repository := "https://" + strings.TrimSpace(moduleOf(t)) + "/blob/main/"
	n := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			n++
			if !strings.Contains(tests, "alertname: "+rule.Alert+"\n") {
				t.Errorf("%s has no test", rule.Alert)
			}
			anchor := strings.ToLower(rule.Alert)
			if entry := repository + "docs/troubleshooting.md#" + anchor; rule.Annotations["runbook_url"] != entry {
				t.Errorf("%s links to %s, not to %s", rule.Alert, rule.Annotations["runbook_url"], entry)
			}
			for _, page := range []string{"troubleshooting.md", "troubleshooting.zh-CN.md"} {
				text, err := os.ReadFile(filepath.Join("..", "docs", page))
				must(t, err)
				_, row, found := strings.Cut(string(text), "\n| <a id=\""+anchor+"\"></a>`"+rule.Alert+"` | ")
				if !found {
					t.Errorf("%s has no entry for %s with the anchor %s", page, rule.Alert, anchor)
					continue
				}
				row, _, _ = strings.Cut(row, "\n")
				cells := strings.Split(strings.TrimSuffix(row, " |"), " | ")
				if len(cells) != 4 || slices.Contains(cells, "") {
					t.Errorf("%s: what %s means, how to tell, what to do, what not to do: %q", page, rule.Alert, cells)
				}
			}
		}
	}
	if n == 0 {
		t.Error("there are no alerts")
	}
	if !installed(t, "the alert rules' own tests", "promtool") {
		return
	}
	promtool(t, nil, "check", "rules", filepath.Join("..", "examples", "prometheus", "rules.yml"))
	promtool(t, nil, "test", "rules", filepath.Join("..", "examples", "prometheus", "rules_test.yml"))
}

// moduleOf returns the module's path.
func moduleOf(t *testing.T) string {
	t.Helper()
	path, err := exec.CommandContext(t.Context(), "go", "list", "-m").Output()
	must(t, err)
	return string(path)
}

// prometheus is a running one.
type prometheus struct{ url string }

// prometheus runs one as the example configures it, for the engine's mount, until the
// test ends.
func (e *engine) prometheus(t *testing.T, token string) prometheus {
	t.Helper()
	dir := t.TempDir()
	credentials := filepath.Join(dir, "vault-token")
	must(t, os.WriteFile(credentials, []byte(token), 0o600))
	vault, err := url.Parse(e.vault.Address())
	must(t, err)
	config := example(t, "prometheus/prometheus.yml")
	for _, r := range []struct{ from, to string }{
		{"scrape_interval: 30s", "scrape_interval: 1s\n  evaluation_interval: 1s"},
		{"scheme: https", "scheme: " + vault.Scheme},
		{"/v1/wechat/metrics\n", "/v1/" + e.path + "/metrics\n"},
		{"/etc/prometheus/vault-token", credentials},
		{"vault.example.com:8200", vault.Host},
	} {
		if strings.Count(config, r.from) != 1 {
			t.Fatalf("the example has no %q, or more than one", r.from)
		}
		config = strings.Replace(config, r.from, r.to, 1)
	}
	file := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(file, []byte(config), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "rules.yml"), []byte(example(t, "prometheus/rules.yml")), 0o600))
	promtool(t, nil, "check", "config", file)

	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := free.Addr().String()
	must(t, free.Close())
	var log bytes.Buffer
	run := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	run.Stdout, run.Stderr = &log, &log
	must(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(vaulttest.Patience, func() { _ = run.Process.Kill() })
		defer timer.Stop()
		if err := run.Wait(); err != nil && !strings.Contains(err.Error(), "terminated") {
			t.Errorf("Prometheus: %v", err)
		}
		if t.Failed() {
			t.Logf("Prometheus said\n%s", log.String())
		}
	})
	p := prometheus{"http://" + address}
	eventually(t, vaulttest.Patience, "Prometheus is ready", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// query returns the samples of a query that are numbers.
func (p prometheus) query(t *testing.T, query string) []float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), vaulttest.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/query?query="+url.QueryEscape(query), nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	must(t, json.NewDecoder(resp.Body).Decode(&answer))
	if answer.Status != "success" {
		t.Fatalf("%s: %s", query, answer.Error)
	}
	var values []float64
	for _, sample := range answer.Data.Result {
		var value float64
		if text, ok := sample.Value[1].(string); ok && text != "NaN" {
			_, err := fmt.Sscan(text, &value)
			must(t, err)
			values = append(values, value)
		}
	}
	return values
}

// count returns how many samples a query has.
func (p prometheus) count(t *testing.T, query string) int {
	t.Helper()
	return len(p.query(t, query))
}

// value returns the only sample of a query, -1 if there is none yet.
func (p prometheus) value(t *testing.T, query string) float64 {
	t.Helper()
	switch values := p.query(t, query); len(values) {
	case 0:
		return -1
	case 1:
		return values[0]
	default:
		t.Fatalf("%s has %d samples", query, len(values))
	}
	return -1
}

// dashboardQueries returns every query of the dashboard, by its panel, with Grafana's
// variables filled in.
func dashboardQueries(t *testing.T) map[string]string {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	must(t, json.Unmarshal([]byte(example(t, "prometheus/dashboard.json")), &dashboard))
	fill := strings.NewReplacer("$mount", ".*", "$__rate_interval", "1m")
	queries := map[string]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries[panel.Title+" "+target.RefID] = fill.Replace(target.Expr)
		}
	}
	for _, variable := range dashboard.Templating.List {
		if m := labelValues.FindStringSubmatch(variable.Definition); m != nil {
			queries["$"+variable.Name] = fmt.Sprintf("count by (%s) (%s)", m[2], m[1])
		}
	}
	if len(queries) < 20 {
		t.Fatalf("the dashboard has only %d queries", len(queries))
	}
	return queries
}

// labelValues is Grafana's query of a label's values.
var labelValues = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
