//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// policy returns an example policy, for the engine's mount.
func (e *engine) policy(t *testing.T, name string) string {
	t.Helper()
	return strings.ReplaceAll(example(t, "policies/"+name+".hcl"), `"wechat/`, `"`+e.path+`/`)
}

// permission is an operation on a path of the mount. "write key" is a write that
// asks for the session key as well, "write verify" one that has the stored
// credentials tried and names no other field.
type permission struct{ operation, path string }

// area returns which part of the engine the path is of.
func (p permission) area() string {
	area, _, _ := strings.Cut(p.path, "/")
	return area
}

// permissions are those that exist for the named accounts. Deletions come last,
// for nothing else is possible afterwards.
func permissions(accounts ...string) []permission {
	all := []permission{{"read", "metrics"}}
	for _, name := range accounts {
		all = append(
			all,
			permission{"write", "config/" + name}, permission{"read", "config/" + name},
			permission{"write verify", "config/" + name},
			permission{"read", "token/" + name}, permission{"write", "refresh/" + name},
			permission{"write", "code2session/" + name}, permission{"write key", "code2session/" + name},
			permission{"write", "oauth2/" + name},
			permission{"read", "sign/" + name}, permission{"write", "sign/" + name}, permission{"read", "ticket/" + name},
			permission{"write", "rotate/" + name}, permission{"write", "clear-quota/" + name},
			permission{"read", "status/" + name},
		)
	}
	levels := []string{"/"}
	for _, name := range accounts {
		if level := "/" + path.Dir(name) + "/"; !slices.Contains(levels, level) {
			levels = append(levels, level)
		}
	}
	for _, level := range levels {
		for _, area := range []string{"config", "token", "status"} {
			all = append(all, permission{"list", area + level})
		}
	}
	for _, name := range accounts {
		all = append(all, permission{"delete", "config/" + name})
	}
	return all
}

// errNothing is a read or a list that is answered with nothing: the client takes
// the 404 of a path that does not exist for that, too.
var errNothing = errors.New("answered with nothing")

// try carries out an operation with a client's rights. The accounts that it is
// about have to exist.
func (p permission) try(t *testing.T, client *api.Client, e *engine) error {
	t.Helper()
	full := e.path + "/" + p.path
	var answer *api.Secret
	var err error
	switch p.operation {
	case "read":
		if p.area() == "metrics" { // which are not JSON
			raw, err := client.Logical().ReadRaw(full)
			if err == nil {
				err = raw.Error()
				raw.Body.Close()
			}
			return err
		}
		answer, err = client.Logical().ReadWithData(full, map[string][]string{"url": {"https://shop.example.com/"}})
	case "list":
		answer, err = client.Logical().List(strings.TrimSuffix(full, "/"))
	case "delete":
		_, err = client.Logical().Delete(full)
	case "write", "write key", "write verify":
		_, err = client.Logical().Write(full, p.data(t, e))
	default:
		panic("unknown operation " + p.operation)
	}
	if err == nil && answer == nil && (p.operation == "read" || p.operation == "list") {
		return errNothing
	}
	return err
}

// data returns what a write sends.
func (p permission) data(t *testing.T, e *engine) fields {
	t.Helper()
	mint := func(api string) string {
		_, name, _ := strings.Cut(p.path, "/")
		return e.hide(e.Mint(e.config(t, name)["appid"].(string), wechatsim.Code{API: api}).Code)
	}
	switch p.area() {
	case "config":
		if p.operation == "write verify" {
			return fields{"verify": true}
		}
		return fields{"max_ttl": "2m"}
	case "code2session":
		data := fields{"js_code": mint(wechatsim.APICode2Session)}
		if p.operation == "write key" {
			data["include_session_key"] = true
		}
		return data
	case "oauth2":
		return fields{"code": mint(wechatsim.APIOAuth2)}
	case "sign":
		return fields{"url": "https://shop.example.com/"}
	}
	return nil
}

// permits tries every permission that exists: those that are granted have to
// succeed, all others have to be denied.
//
// No client may have both an account's token and an answer that may hold the rid
// of a call with the AppSecret: WeChat shows that call's body to a client that has both.
func (e *engine) permits(t *testing.T, client *api.Client, accounts []string, granted func(permission) bool) {
	t.Helper()
	grants, tokens, rids := 0, false, false
	for _, p := range permissions(accounts...) {
		err := p.try(t, client, e)
		var answer *api.ResponseError
		denied := errors.As(err, &answer) && answer.StatusCode == http.StatusForbidden
		switch {
		case !granted(p):
			if !denied {
				t.Errorf("%s %s is not denied: %v", p.operation, p.path, err)
			}
		case err != nil:
			t.Errorf("%s %s fails: %v", p.operation, p.path, err)
		default:
			grants++
			tokens = tokens || p.area() == "token" && p.operation == "read"
			rids = rids || slices.Contains([]string{"config", "rotate", "clear-quota"}, p.area()) && strings.HasPrefix(p.operation, "write")
		}
	}
	if tokens && rids {
		t.Error("one policy gives both a token and the rids of calls with the AppSecret")
	}
	if grants == 0 {
		t.Error("nothing is granted")
	}
}

// teamAccounts are the accounts for which the policies are tried.
var teamAccounts = []string{"myapp", "team-a/shop", "team-a/blog", "team-b/shop"}

// configureTeams makes the accounts in a mount.
func (e *engine) configureTeams(t *testing.T) {
	t.Helper()
	for _, name := range teamAccounts {
		e.configure(t, name, e.account(wechatsim.Account{}))
	}
}

// The matrix of the roles' policies: every operation on every path, for the
// account that a role is about and for others.
func TestEachRoleMayDoItsPartOnly(t *testing.T) {
	t.Parallel()
	of := func(areas ...string) func(permission) bool {
		return func(p permission) bool {
			return slices.ContainsFunc(areas, func(area string) bool { return strings.HasPrefix(p.path, area) })
		}
	}
	exactly := func(all ...permission) func(permission) bool {
		return func(p permission) bool { return slices.Contains(all, p) }
	}
	onCall := func(p permission) bool {
		return p.operation == "write verify" || of("refresh/", "rotate/", "clear-quota/", "status/")(p)
	}
	for role, granted := range map[string]func(permission) bool{
		"operator":   of("config/", "status/"),
		"on-call":    onCall,
		"monitoring": of("status/", "metrics"),
		"team":       of("token/team-a/", "refresh/team-a/", "status/team-a/"),
		"application": exactly(
			permission{"read", "token/team-a/shop"},
			permission{"write", "refresh/team-a/shop"},
		),
		"mini-program": exactly(
			permission{"write", "code2session/team-a/shop"},
			permission{"write key", "code2session/team-a/shop"},
			permission{"read", "token/team-a/shop"},
			permission{"write", "refresh/team-a/shop"},
		),
		"login-service": exactly(permission{"write", "code2session/team-a/shop"}),
		"page-server":   exactly(permission{"read", "sign/team-a/shop"}),
		"web-login":     exactly(permission{"write", "oauth2/team-a/shop"}),
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			e.configureTeams(t)
			e.permits(t, e.login(t, e.policy(t, role)), teamAccounts, granted)
		})
	}
}

// On-call ends a wait with verify=true, and can change nothing by it.
func TestOnCallWritesVerifyAndNothingBesides(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "shop", account)
	before := e.config(t, "shop")
	onCall := e.login(t, e.policy(t, "on-call"))
	other := with(account, fields{
		"proxy_url": "http://127.0.0.1:3128", "ca_pem": "", "request_timeout": "6s", "sync_interval": 0, "max_ttl": "1m",
	})
	for field, value := range other {
		for what, written := range map[string]fields{"alone": {field: value}, "beside verify": {field: value, "verify": true}} {
			t.Run(field+" "+what, func(t *testing.T) {
				_, err := onCall.Logical().Write(e.path+"/config/shop", written)
				refused(t, err, http.StatusForbidden)
			})
		}
	}
	for _, nothing := range []any{false, "false"} {
		_, err := onCall.Logical().Write(e.path+"/config/shop", fields{"verify": nothing})
		refused(t, err, http.StatusForbidden)
	}
	_, err := onCall.Logical().Write(e.path+"/config/shpo", fields{"verify": true})
	refused(t, err, http.StatusForbidden)

	e.inject(account, wechatsim.Fault{Kind: "errcode", Errcode: 40243})
	_, err = onCall.Logical().Write(e.path+"/config/shop", fields{"verify": true})
	refused(t, err, http.StatusBadRequest, "40243")
	e.ClearFaults()
	for _, tried := range []any{true, "true"} { // as in JSON, and as the command line sends it
		_, err = onCall.Logical().Write(e.path+"/config/shop", fields{"verify": tried})
		must(t, err)
	}
	sameFields(t, before, e.config(t, "shop"))
}

// person returns a client that has logged in with a password, as an entity with
// the metadata.
func (e *engine) person(t *testing.T, name string, metadata map[string]string) *api.Client {
	t.Helper()
	v := e.vault
	write := func(path string, data fields) *api.Secret {
		t.Helper()
		answer, err := v.Logical().Write(path, data)
		must(t, err)
		return answer
	}
	mounts, err := v.Sys().ListAuth()
	must(t, err)
	password := e.hide(random())
	write("auth/"+e.path+"/users/"+name, fields{"password": password})
	entity := write("identity/entity", fields{"name": e.path + "-" + name, "metadata": metadata, "policies": []string{e.path}})
	write("identity/entity-alias", fields{
		"name": name, "canonical_id": entity.Data["id"], "mount_accessor": mounts[e.path+"/"].Accessor,
	})
	login := write("auth/"+e.path+"/login/"+name, fields{"password": password})
	client, err := v.Clone()
	must(t, err)
	client.SetToken(e.hide(login.Auth.ClientToken))
	return client
}

func TestOnePolicyServesEveryTeam(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configureTeams(t)
	must(t, e.vault.Sys().PutPolicy(e.path, e.policy(t, "every-team")))
	must(t, e.vault.Sys().EnableAuthWithOptions(e.path, &api.EnableAuthOptions{Type: "userpass"}))
	for person, metadata := range map[string]map[string]string{
		"ann": {"team": "team-a"},
		"bob": {"team": "team-b"},
	} {
		team := metadata["team"]
		e.permits(t, e.person(t, person, metadata), teamAccounts, func(p permission) bool {
			area, name, _ := strings.Cut(p.path, "/")
			return slices.Contains([]string{"token", "refresh", "status"}, area) && strings.HasPrefix(name, team+"/")
		})
	}
	// Who is of no team, and who is of one that is not there, reaches nothing.
	for person, metadata := range map[string]map[string]string{
		"eve": nil,
		"dan": {"team": "team-"},
		"joe": {"team": "*"},
	} {
		client := e.person(t, person, metadata)
		for _, p := range permissions(teamAccounts...) {
			var answer *api.ResponseError
			if err := p.try(t, client, e); !errors.As(err, &answer) || answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s %s is not denied to an entity with the metadata %v: %v", p.operation, p.path, metadata, err)
			}
		}
	}
}

func TestTokenIsHandedOnWrapped(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "team-a/shop", e.account(wechatsim.Account{}))
	pipeline := e.login(t, e.policy(t, "wrapped"))
	_, err := pipeline.Logical().Read(e.path + "/token/team-a/shop")
	refused(t, err, http.StatusForbidden)

	wrapFor := func(ttl string) (*api.Secret, error) {
		pipeline.SetWrappingLookupFunc(func(string, string) string { return ttl })
		return pipeline.Logical().Read(e.path + "/token/team-a/shop")
	}
	_, err = wrapFor("1h")
	refused(t, err, http.StatusForbidden)
	answer, err := wrapFor("60s")
	must(t, err)
	if answer.Data != nil || answer.WrapInfo == nil || answer.WrapInfo.TTL != 60 {
		t.Fatalf("the answer is not wrapped: %+v", answer)
	}
	wrapping := e.hide(answer.WrapInfo.Token)

	// The receiver needs no right but the wrapping token.
	receiver, err := e.vault.Clone()
	must(t, err)
	receiver.SetToken(wrapping)
	unwrapped, err := receiver.Logical().Unwrap("")
	must(t, err)
	sameToken(t, e.token(t, "team-a/shop"), unwrapped)
	if got := ttl(t, unwrapped); got < 5 || got > 240 {
		t.Errorf("the ttl of the unwrapped token is %d", got)
	}
	if _, err := receiver.Logical().Unwrap(""); err == nil {
		t.Error("a token was unwrapped twice")
	}
}
