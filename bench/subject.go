//go:build unix

package main

import (
	"net/http"
	"slices"
	"strings"
)

const (
	enginePlugin = "vault-plugin-secrets-wechat"
	beforePlugin = enginePlugin + "-before"
	kvPlugin     = "vault-plugin-secrets-kv"
	floorPlugin  = "floor"
)

// subject is a request that is measured.
type subject struct {
	name   text
	method string
	path   string // below /v1/, with its query
	body   string // JSON
	plugin string // the external plugin that answers, empty if Vault does itself
}

// subjects are indexed by these.
const (
	token      = iota // a read of this engine's cached token
	before            // the same of another build of the engine, if there is one
	externalKV        // a read
	builtinKV         // a read
	lookupSelf        // a read
	floor             // a read
	signRead          // a signature by read
	signWrite         // a signature by update
	transit           // an HMAC by update
	floorWrite        // an update
	login             // code2session/
	floorLogin        // an update that makes the call of a login
	direct            // the call of WeChat that a login makes, without Vault
)

const (
	page  = "https://shop.example.com/item/12345"
	query = "https%3A%2F%2Fshop.example.com%2Fitem%2F12345"

	// codePlace is where the code of a login goes, and as long as one.
	codePlace = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

	// callPlace is where the address of the call goes that the floor makes.
	callPlace = "address"
)

var subjects = []subject{
	token:      {text{"this engine, `token/` by read", "本引擎，`token/`（read）"}, http.MethodGet, "wechat/token/bench", "", enginePlugin},
	before:     {text{"this engine, the build before", "本引擎，对照版本"}, http.MethodGet, "before/token/bench", "", beforePlugin},
	externalKV: {text{"KV v2, external plugin, by read", "KV v2，外部插件（read）"}, http.MethodGet, "kv-external/data/bench", "", kvPlugin},
	builtinKV:  {text{"KV v2, built in, by read", "KV v2，内置（read）"}, http.MethodGet, "kv-builtin/data/bench", "", ""},
	lookupSelf: {text{"`auth/token/lookup-self` by read", "`auth/token/lookup-self`（read）"}, http.MethodGet, "auth/token/lookup-self", "", ""},
	floor:      {text{"floor by read", "空插件（read）"}, http.MethodGet, "floor/token/bench", "", floorPlugin},
	signRead:   {text{"this engine, `sign/` by read", "本引擎，`sign/`（read）"}, http.MethodGet, "wechat/sign/bench?url=" + query, "", enginePlugin},
	signWrite:  {text{"this engine, `sign/` by update", "本引擎，`sign/`（update）"}, http.MethodPut, "wechat/sign/bench", `{"url":"` + page + `"}`, enginePlugin},
	transit:    {text{"transit `hmac`, built in, by update", "transit `hmac`，内置（update）"}, http.MethodPut, "transit/hmac/bench", `{"input":"` + input + `"}`, ""},
	floorWrite: {text{"floor by update", "空插件（update）"}, http.MethodPut, "floor/sign/bench", `{"url":"` + page + `"}`, floorPlugin},
	login:      {text{"this engine, `code2session/` by update", "本引擎，`code2session/`（update）"}, http.MethodPut, "wechat/code2session/bench", `{"js_code":"` + codePlace + `"}`, enginePlugin},
	floorLogin: {text{"floor by update, which makes the call of WeChat", "空插件（update），由它调用微信"}, http.MethodPut, "floor/login/bench", `{"call":"` + callPlace + `"}`, floorPlugin},
	direct:     {text{"the call of WeChat, made directly", "直接调用微信"}, http.MethodGet, "", "", ""},
}

// input is what transit makes an HMAC of: about what a signature is made of, in
// base64.
var input = strings.Repeat("anNhcGlfdGlja2V0", 16)

// policy admits to the subjects, and to nothing else.
func policy() string {
	var b strings.Builder
	for s, subject := range subjects {
		// The paths of a subject that is read and written are one.
		if s == direct || s == signWrite {
			continue
		}
		path, _, _ := strings.Cut(subject.path, "?")
		capabilities := `"read"`
		switch {
		case s == signRead:
			capabilities = `"read", "update"`
		case subject.method == http.MethodPut:
			capabilities = `"update"`
		}
		b.WriteString(`path "` + path + `" { capabilities = [` + capabilities + "] }\n")
	}
	return b.String()
}

// connections is at how many connections at a time each subject is measured, and
// crowd how many there are when WeChat is slow: as many logins as an account has in
// flight.
var connections = []int{1, 16, 64}

const crowd = 256

// audits is whether there is an audit device, which writes a file.
var audits = []bool{false, true}

// cell is what one measurement is of.
type cell struct {
	audit       bool
	connections int
	subject     int // index of subjects
}

// isLogin tells whether WeChat is called for the subject.
func isLogin(s int) bool { return s == login || s == floorLogin || s == direct }

// measured are the subjects of a run, in two groups that take turns: what Vault
// answers by itself, and logins.
func measured(withBefore bool) (answered, logins []int) {
	for s := range subjects {
		switch {
		case isLogin(s):
			logins = append(logins, s)
		case s != before || withBefore:
			answered = append(answered, s)
		}
	}
	return answered, logins
}

// longest is the highest number of connections at a time.
func longest() int { return max(crowd, slices.Max(connections)) }
