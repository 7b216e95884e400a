//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/vault/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"go.yaml.in/yaml/v3"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// exampleLink is a link to an example, in a page below docs/. One to a folder's
// README leads to all that is below the folder.
var exampleLink = regexp.MustCompile(`\(\.\./examples/([^)]+)\)`)

// Every example is put to a test and is found, in both languages, from the page on
// using the token or the one on operation: none may be added without either.
func TestEveryExampleIsTestedAndLinkedTo(t *testing.T) {
	t.Parallel()
	tested := []string{
		"agent/file.hcl", "agent/supervisor.hcl", // TestAgentsStayFresh
		"clients/go/main.go", "clients/java/Shop.java", "clients/node/shop.mjs", "clients/php/shop.php", "clients/python/shop.py", // TestClientsCacheAndRecover
		"js-sdk/main.go", "js-sdk/page.html", // TestPageIsSigned
		"kubernetes/agent-injector.yaml", "kubernetes/csi.yaml", "kubernetes/external-secrets.yaml", "kubernetes/secrets-operator.yaml",
		"mini-program/go/main.go", "mini-program/node/server.mjs", // TestMiniProgramsNeedNoAppSecret
		"nomad/client.hcl", "nomad/shop.nomad.hcl",
		"policies/administrator.hcl", "policies/application.hcl", "policies/every-team.hcl", "policies/login-service.hcl", "policies/mini-program.hcl",
		"policies/monitoring.hcl", "policies/on-call.hcl", "policies/operator.hcl", "policies/page-server.hcl",
		"policies/team.hcl", "policies/web-login.hcl", "policies/wrapped.hcl", // policy_test.go
		"prometheus/dashboard.json", "prometheus/prometheus.yml", "prometheus/rules.yml", "prometheus/rules_test.yml", // prometheus_test.go
		"sdk/README.md", "sdk/README.zh-CN.md", "sdk/node/nest-wechat.mjs", "sdk/node/node-easywechat.mjs",
		"sdk/node/package-lock.json", "sdk/node/package.json", "sdk/node/try.mjs", "sdk/node/vault.mjs", "sdk/node/wechat-api.mjs",
		"sdk/node/wechat-jssdk.mjs", "sdk/silenceper/go.mod", "sdk/silenceper/go.sum", "sdk/silenceper/main.go", "sdk/silenceper/vault.go", // TestSDKsNeedNoAppSecret
		"spring-boot/WechatToken.java", "spring-boot/application.yaml", // TestSpringClassCachesAndRecovers
		"systemd/vault-agent-wechat.service",
		"terraform/main.tf",
	}
	var found []string
	root := filepath.Join("..", "examples")
	must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "node_modules" {
			return fs.SkipDir // what npm put there, where an example was tried
		}
		if err == nil && !entry.IsDir() {
			path, err = filepath.Rel(root, path)
			found = append(found, filepath.ToSlash(path))
		}
		return err
	}))
	slices.Sort(found)
	if !slices.Equal(found, tested) {
		t.Errorf("the examples are\n%v, those with a test\n%v", found, tested)
	}
	for _, language := range []string{".md", ".zh-CN.md"} {
		page := "using-the-token" + language
		text, err := os.ReadFile(filepath.Join("..", "docs", page))
		must(t, err)
		operation, err := os.ReadFile(filepath.Join("..", "docs", "operate"+language))
		must(t, err)
		text = append(text, operation...)
		linked := map[string]bool{}
		for _, m := range exampleLink.FindAllSubmatch(text, -1) {
			link := string(m[1])
			if linked[link] = true; !slices.Contains(found, link) {
				t.Errorf("%s links to %s, which is not there", page, link)
			}
			if folder, base := path.Split(link); strings.HasPrefix(base, "README") {
				for _, file := range found {
					linked[file] = linked[file] || strings.HasPrefix(file, folder)
				}
			}
		}
		for _, file := range found {
			if !linked[file] {
				t.Errorf("%s does not lead to %s", page, file)
			}
		}
	}
}

func TestPolicyExamplesAreAsVaultFormatsThem(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("..", "examples", "policies", "*.hcl"))
	must(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		formatted := filepath.Join(t.TempDir(), filepath.Base(file))
		must(t, os.WriteFile(formatted, text, 0o600))
		if output, err := exec.Command(subject.host.Path, "policy", "fmt", formatted).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, output)
		}
		if after, err := os.ReadFile(formatted); err != nil || !bytes.Equal(text, after) {
			t.Errorf("%s: vault policy fmt makes of it\n%s (%v)", file, after, err)
		}
	}
}

// object is what YAML and JSON call a mapping.
type object map[string]any

// at follows keys down to a value; nil if one is not there.
func (o object) at(keys ...string) any {
	var value any = o
	for _, key := range keys {
		level, _ := value.(object)
		value = level[key]
	}
	return value
}

// text is at for a string; "" if there is none.
func (o object) text(keys ...string) string {
	text, _ := o.at(keys...).(string)
	return text
}

// manifests returns the documents of a YAML file by their kind.
func manifests(t *testing.T, path string) map[string]object {
	t.Helper()
	all := map[string]object{}
	for documents := yaml.NewDecoder(strings.NewReader(example(t, path))); ; {
		var document object
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		if document.text("apiVersion") == "" || document.text("metadata", "name") == "" {
			t.Errorf("%s holds a document that is no manifest: %v", path, document)
		}
		all[document.text("kind")] = document
	}
}

// The Kubernetes examples name a path and a field: at that path Vault has to
// answer with the token in that field.
func TestKubernetesExamplesLeadToTheToken(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "team-a/shop", e.account(wechatsim.Account{}))

	operator := manifests(t, "kubernetes/secrets-operator.yaml")
	dynamic := operator["VaultDynamicSecret"]
	if dynamic.at("spec", "allowStaticCreds") != true {
		t.Error("the Secrets Operator is not told that the credential rotates without a lease")
	}
	if operator["VaultAuth"].text("spec", "vaultConnectionRef") != operator["VaultConnection"].text("metadata", "name") ||
		dynamic.text("spec", "vaultAuthRef") != operator["VaultAuth"].text("metadata", "name") {
		t.Error("the manifests of the Secrets Operator do not name each other")
	}
	includes, _ := dynamic.at("spec", "destination", "transformation", "includes").([]any)
	if len(includes) != 1 || dynamic.at("spec", "destination", "transformation", "excludeRaw") != true {
		t.Fatal("the Secrets Operator's Secret holds more than the token")
	}

	external := manifests(t, "kubernetes/external-secrets.yaml")
	store := external["SecretStore"].at("spec", "provider", "vault").(object)
	if store.text("version") != "v1" {
		t.Error(`External Secrets is to read as of v1, which leaves the path as it stands`)
	}
	if external["ExternalSecret"].text("spec", "secretStoreRef", "name") != external["SecretStore"].text("metadata", "name") {
		t.Error("the ExternalSecret does not name the SecretStore")
	}
	remote := external["ExternalSecret"].at("spec", "data").([]any)[0].(object)["remoteRef"].(object)

	driver := manifests(t, "kubernetes/csi.yaml")
	var objects []object
	must(t, yaml.Unmarshal([]byte(driver["SecretProviderClass"].text("spec", "parameters", "objects")), &objects))
	if len(objects) != 1 {
		t.Fatalf("the CSI driver mounts %v, want the token", objects)
	}

	for consumer, names := range map[string]struct{ path, field string }{
		"Secrets Operator": {dynamic.text("spec", "mount") + "/" + dynamic.text("spec", "path"), strings.Trim(includes[0].(string), "^$")},
		"External Secrets": {store.text("path") + "/" + remote.text("key"), remote.text("property")},
		"CSI driver":       {objects[0].text("secretPath"), objects[0].text("secretKey")},
	} {
		answer, err := e.vault.Logical().Read(e.here(names.path))
		must(t, err)
		if token, _ := answer.Data[names.field].(string); token != accessToken(e.token(t, "team-a/shop")) {
			t.Errorf("%s: the field %q of %s is not the token", consumer, names.field, names.path)
		}
	}
}

// here leads a path of the examples to the engine's mount.
func (e *engine) here(path string) string {
	return e.path + strings.TrimPrefix(path, "wechat")
}

// parsed returns a file in HCL's newer syntax.
func parsed(t *testing.T, path string) *hclsyntax.Body {
	t.Helper()
	file, faults := hclsyntax.ParseConfig([]byte(example(t, path)), path, hcl.InitialPos)
	if faults.HasErrors() {
		t.Fatal(faults)
	}
	return file.Body.(*hclsyntax.Body)
}

// block follows types and labels of blocks, as in "template" or "resource x y".
func block(t *testing.T, body *hclsyntax.Body, path ...string) *hclsyntax.Body {
	t.Helper()
	for _, step := range path {
		i := slices.IndexFunc(body.Blocks, func(b *hclsyntax.Block) bool {
			return strings.Join(append([]string{b.Type}, b.Labels...), " ") == step
		})
		if i < 0 {
			t.Fatalf("there is no block %s", step)
		}
		body = body.Blocks[i].Body
	}
	return body
}

// value evaluates an attribute.
func value(t *testing.T, body *hclsyntax.Body, name string, context *hcl.EvalContext) cty.Value {
	t.Helper()
	attribute, there := body.Attributes[name]
	if !there {
		t.Fatalf("there is no attribute %s", name)
	}
	v, faults := attribute.Expr.Value(context)
	if faults.HasErrors() {
		t.Fatal(faults)
	}
	return v
}

// The injector's annotation and Nomad's template are rendered by a real Agent,
// which has the same engine inside.
func TestTemplatesRenderTheTokenAndNothingElse(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "team-a/shop", e.account(wechatsim.Account{}))
	client := e.login(t, e.policy(t, "application"))

	deployment := manifests(t, "kubernetes/agent-injector.yaml")["Deployment"]
	annotations := deployment.at("spec", "template", "metadata", "annotations").(object)
	if annotations["vault.hashicorp.com/template-config-exit-on-retry-failure"] != "false" {
		t.Error("the injector's Agent ends while Vault is away")
	}
	if got := annotations["vault.hashicorp.com/agent-inject-secret-wechat-token"]; got != "wechat/token/team-a/shop" {
		t.Errorf("the injector is led to %v", got)
	}
	task := block(t, parsed(t, "nomad/shop.nomad.hcl"), "job shop", "group shop", "task shop", "template")

	dir := t.TempDir()
	type stanza struct {
		Contents    string `json:"contents"`
		Destination string `json:"destination"`
	}
	config := struct {
		Vault         object   `json:"vault"`
		AutoAuth      object   `json:"auto_auth"`
		ExitAfterAuth bool     `json:"exit_after_auth"`
		Templates     []stanza `json:"template"`
	}{
		Vault: object{"address": e.vault.Address()},
		AutoAuth: object{"method": []object{{
			"type": "token_file", "config": object{"token_file_path": filepath.Join(dir, "vault-token")},
		}}},
		ExitAfterAuth: true,
	}
	for name, template := range map[string]string{
		"injector": annotations["vault.hashicorp.com/agent-inject-template-wechat-token"].(string),
		"nomad":    value(t, task, "data", nil).AsString(),
	} {
		config.Templates = append(config.Templates, stanza{
			strings.ReplaceAll(template, `"wechat/`, `"`+e.path+"/"), filepath.Join(dir, name),
		})
	}
	text, err := json.Marshal(config)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "agent.json"), text, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "vault-token"), []byte(client.Token()), 0o600))
	agent := exec.CommandContext(t.Context(), subject.host.Path, "agent", "-config="+filepath.Join(dir, "agent.json"))
	agent.Env = []string{"HOME=" + dir}
	if output, err := agent.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, template := range config.Templates {
		rendered, err := os.ReadFile(template.Destination)
		if err != nil || string(rendered) != accessToken(e.token(t, "team-a/shop")) {
			t.Errorf("%s renders %q (%v), want the token", filepath.Base(template.Destination), rendered, err)
		}
	}
}

// What Terraform's example has done is done here without Terraform: the command
// that writes the secret, the settings, and the policy.
func TestTerraformExampleConfiguresAnAccount(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	main := parsed(t, "terraform/main.tf")
	variables := &hcl.EvalContext{
		Variables: map[string]cty.Value{
			"vault_mount": cty.ObjectVal(map[string]cty.Value{"wechat": cty.ObjectVal(map[string]cty.Value{"path": cty.StringVal(e.path)})}),
			"var":         cty.ObjectVal(map[string]cty.Value{"appid": cty.StringVal(account["appid"].(string)), "secret_version": cty.NumberIntVal(1), "plugin_version": cty.StringVal(subject.plugin.Version)}),
		},
		Functions: map[string]function.Function{
			"jsonencode": stdlib.JSONEncodeFunc,
		},
	}
	mount := block(t, main, "resource vault_mount wechat")
	if got := value(t, mount, "type", nil).AsString(); got != pluginName {
		t.Errorf("the mount is of the type %q", got)
	}
	// The same mount once more, with the version that the example asks for.
	must(t, e.vault.Sys().Mount(e.path+"-again", &api.MountInput{Type: pluginName, Config: api.MountConfigInput{
		PluginVersion: value(t, mount, "plugin_version", variables).AsString(),
	}}))
	must(t, e.vault.Sys().Unmount(e.path+"-again"))
	for _, resource := range []string{"resource vault_mount wechat", "resource vault_generic_endpoint account"} {
		if !value(t, block(t, main, resource, "lifecycle"), "prevent_destroy", nil).True() {
			t.Errorf("%s can be destroyed by a slip", resource)
		}
	}

	// The simulator instead of WeChat, as the example cannot know it.
	e.configure(t, "team-a/shop", account, unverified, fields{"secret": e.hide(random())})
	writer := block(t, main, "resource terraform_data account", "provisioner local-exec")
	bin := t.TempDir()
	must(t, os.Symlink(subject.host.Path, filepath.Join(bin, "vault")))
	command := exec.Command("sh", "-c", value(t, writer, "command", variables).AsString())
	command.Env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + bin,
		"VAULT_ADDR=" + e.vault.Address(), "VAULT_TOKEN=" + e.vault.Token(),
		"WECHAT_SECRET=" + account["secret"].(string),
	}
	for name, v := range value(t, writer, "environment", variables).AsValueMap() {
		command.Env = append(command.Env, name+"="+v.AsString())
	}
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	e.token(t, "team-a/shop") // so it was the right secret

	settings := block(t, main, "resource vault_generic_endpoint account")
	path := value(t, settings, "path", variables).AsString()
	var written map[string]any
	must(t, json.Unmarshal([]byte(value(t, settings, "data_json", variables).AsString()), &written))
	_, err = e.vault.Logical().Write(path, written)
	must(t, err)
	read := e.config(t, "team-a/shop")
	for field, want := range written {
		// Terraform compares as JSON: a value that reads back otherwise is a change
		// in every plan.
		wantJSON, _ := json.Marshal(want)
		gotJSON, _ := json.Marshal(read[field])
		if !bytes.Equal(gotJSON, wantJSON) {
			t.Errorf("%s reads back as %s, written was %s", field, gotJSON, wantJSON)
		}
	}
	e.token(t, "team-a/shop")

	policy := value(t, block(t, main, "resource vault_policy shop"), "policy", variables).AsString()
	client := e.login(t, policy)
	_, err = client.Logical().Write(e.path+"/refresh/team-a/shop", nil)
	must(t, err)
	answer, err := client.Logical().Read(e.path + "/token/team-a/shop")
	must(t, err)
	if accessToken(answer) != accessToken(e.token(t, "team-a/shop")) {
		t.Error("the policy does not lead to the token")
	}

	for _, word := range []string{"secret =", "secret=", "WECHAT_SECRET"} {
		for line := range strings.Lines(example(t, "terraform/main.tf")) {
			if strings.Contains(line, word) && !strings.Contains(line, "secret=-") && !strings.HasPrefix(line, "#") {
				t.Errorf("the secret may be in Terraform's files: %s", line)
			}
		}
	}
}

// unitLine is a line of a systemd unit: a section, a setting, a comment or none.
var unitLine = regexp.MustCompile(`^(?:\[(\w+)\]|([A-Z]\w*)=(\S.*)|#.*|)$`)

func TestSystemdUnitRunsTheAgentExample(t *testing.T) {
	t.Parallel()
	section, settings := "", map[string]string{}
	for i, line := range strings.Split(example(t, "systemd/vault-agent-wechat.service"), "\n") {
		m := unitLine.FindStringSubmatch(line)
		switch {
		case m == nil:
			t.Errorf("line %d is none of a unit: %s", i+1, line)
		case m[1] != "":
			section = m[1]
		case m[2] != "":
			settings[section+"/"+m[2]] = m[3]
		}
	}
	_, command, _ := strings.Cut(settings["Service/ExecStart"], "/usr/bin/")
	config := example(t, "agent/file.hcl")
	if command == "" || !strings.Contains(config, "#     "+command+"\n") {
		t.Errorf("the unit starts %q, which is not what agent/file.hcl says", command)
	}
	if !strings.Contains(config, `"/run/`+settings["Service/RuntimeDirectory"]+`/`) {
		t.Errorf("the Agent does not write below the unit's runtime directory, %q", settings["Service/RuntimeDirectory"])
	}
	for _, section := range []string{"Unit/Description", "Service/User", "Service/Restart", "Install/WantedBy"} {
		if settings[section] == "" {
			t.Errorf("%s is missing", section)
		}
	}
}

// The configuration says where the class finds the token, and that Spring is not to
// look for it itself. TestSpringClassCachesAndRecovers runs the class.
func TestSpringBootConfiguration(t *testing.T) {
	t.Parallel()
	var config object
	must(t, yaml.Unmarshal([]byte(example(t, "spring-boot/application.yaml")), &config))
	if config.at("spring", "cloud", "vault", "kv", "enabled") != false {
		t.Error("Spring would look for the application's properties in KV")
	}
	e := newEngine(t)
	name := config.text("wechat", "account")
	e.configure(t, name, e.account(wechatsim.Account{}))
	class := example(t, "spring-boot/WechatToken.java")
	for _, property := range []string{"mount", "account"} {
		if config.text("wechat", property) == "" || !regexp.MustCompile(`\$\{wechat\.`+property+`[:}]`).MatchString(class) {
			t.Errorf("the property wechat.%s is not in both the configuration and the class", property)
		}
	}
	answer, err := e.login(t, e.policy(t, "application")).Logical().Read(e.here(config.text("wechat", "mount") + "/token/" + name))
	must(t, err)
	// Spring's lease container schedules nothing with this, so the class must.
	if answer.LeaseDuration != 0 || answer.LeaseID != "" {
		t.Error("the answer has a lease")
	}
}

// A Nomad client goes on reading while Vault is away, and a task's file belongs to
// the user that reads it.
func TestNomadGoesOnAndTheTaskCanRead(t *testing.T) {
	t.Parallel()
	retry := block(t, parsed(t, "nomad/client.hcl"), "client", "template", "vault_retry")
	if attempts := value(t, retry, "attempts", nil); !attempts.RawEquals(cty.NumberIntVal(0)) {
		t.Errorf("the client gives up after %#v tries", attempts)
	}
	template := block(t, parsed(t, "nomad/shop.nomad.hcl"), "job shop", "group shop", "task shop", "template")
	if perms := value(t, template, "perms", nil).AsString(); perms != "0400" {
		t.Errorf("the file's mode is %s", perms)
	}
	for _, number := range []string{"uid", "gid"} {
		if v := value(t, template, number, nil); v.Type() != cty.Number {
			t.Errorf("%s is %#v, want a number", number, v)
		}
	}
}
