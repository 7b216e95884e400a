//go:build e2e

package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestPathHelpDocumentsEveryPath(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for path, words := range map[string][]string{
		"":             {"AppSecret", "config/", "token/"},
		"config/myapp": {"secret=-", "verify", "base_url", "proxy_url", "ca_pem", "request_timeout", "sync_interval", "max_ttl", "appid"},
		"config/":      {"level"},
		"token/myapp":  {"ttl", "lease", "WeChat"},
		"token/":       {"level"},
		"sign/myapp":   {"wx.config", "url=", "percent-encoded", "two hours"},
		"ticket/myapp": {"wx_card", "ttl", "ten minutes", "sign/"},
		"metrics":      {"Prometheus", "active node"},
	} {
		help, err := e.vault.Help(e.path + "/" + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, word := range words {
			if !strings.Contains(help.Help, word) {
				t.Errorf("the help of %q does not hold %q:\n%s", path, word, help.Help)
			}
		}
	}
}

func TestOpenAPINamesEveryOperation(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	var paths map[string]any
	// Vault asks every mount, and fails where another test's is just going away.
	eventually(t, patience, "Vault's OpenAPI document", func() bool {
		answer, err := e.vault.Logical().Read("sys/internal/specs/openapi")
		if err != nil {
			return false
		}
		paths, _ = answer.Data["paths"].(map[string]any)
		return true
	})
	for path, operations := range map[string]map[string]string{
		"config/{name}":  {"post": "wechat-configure-account", "get": "wechat-read-account", "delete": "wechat-delete-account"},
		"config/":        {"get": "wechat-list-accounts"},
		"config/{name}/": {"get": "wechat-list-accounts-below"},
		"token/{name}":   {"get": "wechat-read-token"},
		"sign/{name}":    {"get": "wechat-read-signature-of-page", "post": "wechat-sign-page"},
		"ticket/{name}":  {"get": "wechat-read-ticket"},
		"metrics":        {"get": "wechat-read-metrics"},
		"token/":         {"get": "wechat-list-tokens"},
		"token/{name}/":  {"get": "wechat-list-tokens-below"},
	} {
		documented, _ := paths["/"+e.path+"/"+path].(map[string]any)
		for method, want := range operations {
			operation, _ := documented[method].(map[string]any)
			if summary, _ := operation["summary"].(string); operation["operationId"] != want || summary == "" {
				t.Errorf("%s %s is %v, want a summary and the operation %s", method, path, operation, want)
			}
		}
		if description, _ := documented["description"].(string); description == "" {
			t.Errorf("%s has no description", path)
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	e := newPlatform(t, shared.get(t))
	e.path = "wechat"
	account := e.account(wechatsim.Account{})
	home := t.TempDir()
	command := func(stdin string, args ...string) (string, error) {
		cmd := exec.Command(subject.host.Path, args...)
		cmd.Env = []string{"VAULT_ADDR=" + e.vault.Address(), "VAULT_TOKEN=" + e.vault.Token(), "HOME=" + home}
		cmd.Stdin = strings.NewReader(stdin)
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
	run := func(stdin string, args ...string) string {
		t.Helper()
		output, err := command(stdin, args...)
		if err != nil {
			t.Fatalf("vault %s: %v\n%s", strings.Join(args, " "), err, output)
		}
		return output
	}

	run("", "plugin", "register", "-command="+subject.plugin.Command(), "-sha256="+subject.plugin.SHA256, "-version="+subject.plugin.Version, "secret", "wechat-by-hand")
	run("", "secrets", "enable", "-path=wechat", "wechat-by-hand")
	e.unmountAtEnd(t)
	run(account["secret"].(string), "write", "wechat/config/myapp", "appid="+account["appid"].(string), "base_url="+e.url, "secret=-")

	table := strings.Fields(run("", "read", "wechat/token/myapp"))
	at := slices.Index(table, "access_token")
	if at < 0 || table[at+1] != e.current(account) {
		t.Errorf("vault read does not show the token:\n%s", strings.Join(table, " "))
	}
	if got := run("", "read", "-field=access_token", "wechat/token/myapp"); got != e.current(account) {
		t.Errorf("vault read -field=access_token prints %q", got)
	}
	if got := run("", "read", "-field=ttl", "wechat/token/myapp"); got != "240" && got != "239" {
		t.Errorf("vault read -field=ttl prints %q", got)
	}
	if got := run("", "read", "wechat/config/myapp"); strings.Contains(got, account["secret"].(string)) || !strings.Contains(got, "secret_set_time") {
		t.Errorf("vault read shows of the configuration:\n%s", got)
	}
	if got := run("", "list", "wechat/config"); !strings.Contains(got, "myapp") {
		t.Errorf("vault list prints\n%s", got)
	}
	if got := run("", "path-help", "wechat/config/myapp"); !strings.Contains(got, "vault write wechat/config/myapp") {
		t.Errorf("vault path-help prints\n%s", got)
	}
	if got, err := command("", "read", "wechat/token/absent"); err == nil || !strings.Contains(got, "wechat/config/absent") {
		t.Errorf("vault read of an unknown name prints\n%s", got)
	}
	run("", "delete", "wechat/config/myapp")
	if got, err := command("", "read", "wechat/token/myapp"); err == nil {
		t.Errorf("vault read of a deleted account prints\n%s", got)
	}
}
