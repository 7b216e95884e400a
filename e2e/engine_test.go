//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// fields are those of a request.
type fields = map[string]any

// with returns the fields of all, later ones over earlier ones.
func with(all ...fields) fields {
	merged := fields{}
	for _, f := range all {
		maps.Copy(merged, f)
	}
	return merged
}

// engine is a mount of the plugin, and a platform for it.
type engine struct {
	*wechatsim.Sim

	vault *vaulttest.Server
	path  string // of the mount, without a trailing slash
	url   string // of the platform

	mu     sync.Mutex
	hidden []string
}

// newEngine mounts the plugin on the shared Vault.
func newEngine(t *testing.T) *engine {
	t.Helper()
	return newEngineOn(t, shared.get(t))
}

// newEngineOn mounts the plugin on the given Vault.
func newEngineOn(t *testing.T, v *vaulttest.Server) *engine {
	t.Helper()
	e := newPlatform(t, v)
	e.mount(t)
	return e
}

// newPlatform starts a platform for a mount that the test makes itself.
func newPlatform(t *testing.T, v *vaulttest.Server) *engine {
	t.Helper()
	e := &engine{Sim: wechatsim.New(), vault: v, path: "wechat-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))}
	server := httptest.NewServer(e.recorder(e.Sim))
	e.url = server.URL
	t.Cleanup(server.Close)
	return e
}

// beside mounts the plugin once more, on the same Vault and with the same
// platform.
func (e *engine) beside(t *testing.T) *engine {
	t.Helper()
	other := &engine{Sim: e.Sim, vault: e.vault, path: e.path + "-beside", url: e.url}
	other.mount(t)
	return other
}

// mount mounts the plugin until the test ends.
func (e *engine) mount(t *testing.T) {
	t.Helper()
	must(t, e.vault.Sys().Mount(e.path, &api.MountInput{Type: pluginName}))
	e.unmountAtEnd(t)
}

// unmountAtEnd unmounts the plugin when the test ends, and then looks for
// secrets and tokens in the server's files.
func (e *engine) unmountAtEnd(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if err := e.vault.Sys().Unmount(e.path); err != nil {
			t.Error(err)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if err := e.vault.Leaks(e.hidden); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("Vault's log ends with\n%s", e.vault.LogTail())
		}
	})
}

// hide notes what must not be found in the server's files, and returns it.
func (e *engine) hide(value string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hidden = append(e.hidden, value)
	e.vault.Hide(value)
	return value
}

// answeredSecret finds tokens, tickets, keys and users in an answer of the platform, or
// what there is of one that was cut off.
var answeredSecret = regexp.MustCompile(`"(?:access_token|refresh_token|ticket|session_key|openid|unionid)":"([^"]{12,})`)

// recorder hides everything secret that leaves the platform.
func (e *engine) recorder(platform http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &recording{ResponseWriter: w}
		defer func() {
			for _, m := range answeredSecret.FindAllSubmatch(answer.body.Bytes(), -1) {
				e.hide(string(m[1]))
			}
		}()
		platform.ServeHTTP(answer, r)
	})
}

// recording keeps what is written.
type recording struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (r *recording) Write(b []byte) (int, error) {
	r.body.Write(b)
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through to the connection.
func (r *recording) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// random returns 32 characters that are nowhere else.
func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails, by its documentation
	return hex.EncodeToString(b)
}

// account makes an account at the platform, and returns the fields that
// configure it.
func (e *engine) account(settings wechatsim.Account) fields {
	appid := "wx" + random()[:16]
	settings.Secret = e.hide(random())
	e.SetAccount(appid, settings)
	return fields{"appid": appid, "secret": settings.Secret, "base_url": e.url}
}

// calls returns how often the platform was asked for the account's token.
func (e *engine) calls(account fields) int { return len(e.Calls(account["appid"].(string))) }

// current returns the newest token of an account.
func (e *engine) current(account fields) string { return e.Current(account["appid"].(string)) }

// inject lets a fault strike every call for the account.
func (e *engine) inject(account fields, fault wechatsim.Fault) {
	fault.AppID = account["appid"].(string)
	e.Inject(fault)
}

// unverified has a write stored without a call.
var unverified = fields{"verify": false}

// noSync switches comparisons off, so that no call comes between.
var noSync = fields{"sync_interval": 0}

// write writes a configuration.
func (e *engine) write(name string, all ...fields) (*api.Secret, error) {
	return e.vault.Logical().Write(e.path+"/config/"+name, with(all...))
}

// configure writes a configuration that has to be accepted, without a warning.
func (e *engine) configure(t *testing.T, name string, all ...fields) {
	t.Helper()
	answer, err := e.write(name, all...)
	if err != nil {
		t.Fatalf("writing config/%s: %v", name, err)
	}
	if answer != nil {
		t.Errorf("writing config/%s was answered %v", name, answer)
	}
}

// config reads a configuration, nil if there is none.
func (e *engine) config(t *testing.T, name string) fields {
	t.Helper()
	answer, err := e.vault.Logical().Read(e.path + "/config/" + name)
	if err != nil {
		t.Fatalf("reading config/%s: %v", name, err)
	}
	if answer == nil {
		return nil
	}
	return answer.Data
}

// sameFields checks that a configuration is as it was.
func sameFields(t *testing.T, was, is fields) {
	t.Helper()
	if !reflect.DeepEqual(was, is) {
		t.Errorf("the configuration is\n%v, want\n%v", is, was)
	}
}

// readToken reads a token.
func (e *engine) readToken(name string) (*api.Secret, error) {
	return e.vault.Logical().Read(e.path + "/token/" + name)
}

// token reads a token that has to be there, and that the platform has to accept.
func (e *engine) token(t *testing.T, name string) *api.Secret {
	t.Helper()
	answer, err := e.readToken(name)
	if err != nil {
		t.Fatalf("reading token/%s: %v", name, err)
	}
	if answer == nil {
		t.Fatalf("reading token/%s: not found", name)
	}
	if _, errcode := e.Check(accessToken(answer)); errcode != 0 {
		t.Fatalf("the token of %s is refused by the platform: %d", name, errcode)
	}
	return answer
}

func accessToken(answer *api.Secret) string {
	token, _ := answer.Data["access_token"].(string)
	return token
}

// ttl returns the ttl of a token in seconds.
func ttl(t *testing.T, answer *api.Secret) int64 {
	t.Helper()
	number, ok := answer.Data["ttl"].(json.Number)
	if !ok {
		t.Fatalf("ttl is %v, want a number", answer.Data["ttl"])
	}
	seconds, err := number.Int64()
	if err != nil {
		t.Fatalf("ttl is %v, want an integer", number)
	}
	return seconds
}

// timeOf returns a field that is an RFC 3339 string in UTC.
func timeOf(t *testing.T, answer fields, field string) time.Time {
	t.Helper()
	text, _ := answer[field].(string)
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || !strings.HasSuffix(text, "Z") {
		t.Fatalf("%s is %v, want an RFC 3339 string in UTC", field, answer[field])
	}
	return at
}

// sameToken checks that two reads gave one token, with nothing changed but ttl.
func sameToken(t *testing.T, first, second *api.Secret) {
	t.Helper()
	a, b := maps.Clone(first.Data), maps.Clone(second.Data)
	delete(a, "ttl")
	delete(b, "ttl")
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two reads of the same token differ in more than ttl:\n%v\n%v", a, b)
	}
}

// otherToken checks that a read gave another token than an earlier one, and
// tells so in last_vault_rotation.
func otherToken(t *testing.T, first, second *api.Secret) {
	t.Helper()
	if accessToken(first) == accessToken(second) {
		t.Error("the token is still the same")
	}
	if first.Data["last_vault_rotation"] == second.Data["last_vault_rotation"] {
		t.Error("the token changed, and last_vault_rotation did not")
	}
}

// list returns the sorted keys of a level, none if there is nothing.
func (e *engine) list(t *testing.T, level string) []string {
	t.Helper()
	answer, err := e.vault.Logical().List(e.path + "/" + level)
	if err != nil {
		t.Fatalf("listing %s: %v", level, err)
	}
	return keys(answer)
}

// keys returns what a list answered, sorted.
func keys(list *api.Secret) []string {
	if list == nil {
		return nil
	}
	var keys []string
	for _, key := range list.Data["keys"].([]any) {
		keys = append(keys, key.(string))
	}
	slices.Sort(keys)
	return keys
}

// absent checks that nothing is there of an account.
func (e *engine) absent(t *testing.T, name string) {
	t.Helper()
	if config := e.config(t, name); config != nil {
		t.Errorf("config/%s is there: %v", name, config)
	}
	for _, area := range []string{"config", "token"} {
		if keys := e.list(t, area); slices.Contains(keys, name) {
			t.Errorf("%s is listed in %s/: %v", name, area, keys)
		}
	}
	_, err := e.readToken(name)
	refused(t, err, http.StatusBadRequest, e.path+"/config/"+name)
}

// refused checks that a request was answered with an error of this status, and
// that all the words are in it.
func refused(t *testing.T, err error, status int, words ...string) {
	t.Helper()
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		t.Errorf("the answer is no error but %v, want status %d", err, status)
		return
	}
	if answer.StatusCode != status {
		t.Errorf("the status is %d, want %d: %v", answer.StatusCode, status, answer.Errors)
	}
	message := strings.Join(answer.Errors, "\n")
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("the message does not hold %q: %s", word, message)
		}
	}
}

// eventually waits until a condition holds, and fails the test if it does not
// within the given time.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
