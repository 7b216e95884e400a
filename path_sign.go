package wechat

import (
	"context"
	"crypto/sha1" //nolint:gosec // WeChat's signature is one
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const signPrefix = "sign/"

// maxPageURL is the longest address of a page that is signed, in bytes, its fragment
// aside.
const maxPageURL = 2 << 10

func (b *backend) signPaths() []*framework.Path {
	operation := func(verb string) *framework.PathOperation {
		return &framework.PathOperation{
			Callback:     b.signPath,
			Summary:      "Sign a page for WeChat's JS-SDK.",
			DisplayAttrs: &framework.DisplayAttributes{OperationVerb: verb, OperationSuffix: "page"},
			Responses: map[int][]framework.Response{http.StatusOK: {{Description: "What wx.config wants", Fields: map[string]*framework.FieldSchema{
				"appid":     {Type: framework.TypeString, Description: "The account's AppID: appId of wx.config.", Required: true},
				"timestamp": {Type: framework.TypeInt64, Description: "Seconds of Unix time: timestamp of wx.config.", Required: true},
				"noncestr":  {Type: framework.TypeString, Description: "A random text: nonceStr of wx.config.", Required: true},
				"signature": {Type: framework.TypeString, Description: "signature of wx.config.", Required: true},
				"url":       {Type: framework.TypeString, Description: "The address that was signed.", Required: true},
			}}}},
		}
	}
	return b.paths(accountPath{
		prefix:      signPrefix,
		synopsis:    "A signature of a page, for WeChat's JS-SDK.",
		description: signHelp,
		fields: map[string]*framework.FieldSchema{
			"url": {
				Type:        framework.TypeString,
				Required:    true,
				Query:       true,
				Description: "The page's address as the browser shows it, http or https. A fragment is cut off, nothing else is changed.",
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   operation("read-signature-of"),
			logical.UpdateOperation: operation("sign"),
		},
	})
}

// signedRead reports whether the request is a read of a signature as pages' servers
// send it, and of which account and page.
func signedRead(req *logical.Request) (name, page string, ok bool) {
	if req.Operation != logical.ReadOperation || len(req.Data) != 1 {
		return "", "", false
	}
	name, ok = strings.CutPrefix(req.Path, signPrefix)
	if !ok || name == "" {
		return "", "", false
	}
	page, ok = req.Data["url"].(string)
	return name, page, ok
}

func (b *backend) signPath(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.sign(ctx, req, data.Get("name").(string), data.Get("url").(string))
}

// sign answers a request of sign/name, be name and page valid or not.
func (b *backend) sign(ctx context.Context, req *logical.Request, name, page string) (*logical.Response, error) {
	if !b.keeper.writable() { // what onActive checks, which reads by HandleRequest do not go through
		return nil, logical.ErrReadOnly
	}
	if b.keeper.lookup(name) == nil { // what is in memory has passed the check
		if err := checkName(name); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
	}
	if len(page) > maxText { // a fragment is cut off, but not of any length
		return logical.ErrorResponse("url is longer than %d bytes", maxText), nil
	}
	page, _, _ = strings.Cut(page, "#")
	if err := checkPage(page); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	seen, err := b.keeper.get(ctx, b.keeper.metrics.watched(req.Storage), name, jsapiTicket)
	b.keeper.metrics.signatures.count(seen.account != nil, err, "signed")
	if err != nil {
		return failureResponse(fmt.Sprintf("no signature for account %q", name), err)
	}
	if seen.account == nil {
		return unknownAccount(ctx, req, name), nil
	}
	nonce, now := randomText(), seen.now.Wall.Unix()
	resp := &logical.Response{Data: map[string]any{
		"appid":     seen.cfg.AppID,
		"timestamp": now,
		"noncestr":  nonce,
		"signature": signature(seen.st.Value, nonce, now, page),
		"url":       page,
	}}
	seen.warn(resp)
	if what := unseen(page); what != "" {
		resp.AddWarning(fmt.Sprintf("This signature will hardly fit the page: url has %s. WeChat compares with the browser's location.href: "+
			"let the page send encodeURIComponent(location.href.split('#')[0]), and decode it once.", what))
	}
	return resp, nil
}

// signature is what WeChat's JS-SDK checks: the values go into it as they are.
func signature(ticket, nonce string, timestamp int64, page string) string {
	text := make([]byte, 0, 512)
	text = append(text, "jsapi_ticket="...)
	text = append(text, ticket...)
	text = append(text, "&noncestr="...)
	text = append(text, nonce...)
	text = append(text, "&timestamp="...)
	text = strconv.AppendInt(text, timestamp, 10)
	text = append(text, "&url="...)
	text = append(text, page...)
	sum := sha1.Sum(text) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

// checkPage says why page, which has no fragment, is not the address of one, or
// returns nil. It looks at as little as it can: browsers take addresses that no parser
// of URLs does, and WeChat signs what the browser shows.
func checkPage(page string) error {
	switch {
	case page == "":
		return errors.New("url is required: the page's address as the browser shows it")
	case len(page) > maxPageURL:
		return fmt.Errorf("url is longer than %d bytes without its fragment", maxPageURL)
	case !isText(page):
		return errors.New("url holds a control character or is not UTF-8: check for a line end at its end")
	}
	scheme, host, _ := splitPage(page)
	if !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		return errors.New("url must begin with http:// or https://: is its scheme missing, or is it still percent-encoded?")
	}
	host, port := splitHost(host)
	switch {
	case host == "" || strings.ContainsFunc(host, unicode.IsSpace):
		return errors.New("url has no host: write the page's whole address as the browser shows it")
	case strings.Trim(port, "0123456789") != "":
		return errors.New("url has a port that is not a number: write the page's whole address as the browser shows it")
	case host[0] != '[' && strings.ContainsAny(host, "\"%<>[\\]^`{|}"):
		return errors.New("url has a character in its host that no host has: is it percent-encoded more than once, or is a template not filled in?")
	}
	return nil
}

// splitPage splits an address into its scheme, its host with a port, and what follows.
func splitPage(page string) (scheme, host, rest string) {
	scheme, host, found := strings.Cut(page, "://")
	if !found {
		return "", "", ""
	}
	if end := strings.IndexAny(host, "/?"); end >= 0 {
		host, rest = host[:end], host[end:]
	}
	return scheme, host[strings.LastIndexByte(host, '@')+1:], rest
}

// splitHost splits a port from a host.
func splitHost(hostport string) (host, port string) {
	if colon := strings.LastIndexByte(hostport, ':'); colon > strings.LastIndexByte(hostport, ']') {
		return hostport[:colon], hostport[colon+1:]
	}
	return hostport, ""
}

// unseen says what of page, which checkPage has passed, the location.href of no browser
// has, or hardly any: it was changed on its way. It is empty for nearly every page.
func unseen(page string) string {
	var found []string
	if i := strings.IndexFunc(page, func(r rune) bool { return r >= utf8.RuneSelf || r == ' ' || r == '"' || r == '<' || r == '>' }); i >= 0 {
		switch c := page[i]; {
		case c == ' ':
			found = append(found, "a blank, which is + or %20 in a browser")
		case c >= utf8.RuneSelf:
			found = append(found, "a character beyond ASCII, which a browser shows percent-encoded, or in punycode in the host")
		default:
			found = append(found, fmt.Sprintf("a %c, which a browser shows percent-encoded", c))
		}
	}
	if strings.Contains(page, "&amp;") {
		found = append(found, "&amp;, which is & in a browser")
	}
	scheme, host, rest := splitPage(page)
	if strings.ContainsFunc(scheme+host, unicode.IsUpper) {
		found = append(found, "a capital letter in scheme or host")
	}
	_, port := splitHost(host)
	if port == "443" && strings.EqualFold(scheme, "https") || port == "80" && strings.EqualFold(scheme, "http") {
		found = append(found, "the scheme's own port")
	}
	if rest == "" || rest[0] == '?' {
		found = append(found, "no / after its host")
	}
	return strings.Join(found, ", and ")
}

// isText reports whether s is UTF-8 without control characters.
func isText(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return false
		case c >= utf8.RuneSelf: // which is rare
			return utf8.ValidString(s) && !strings.ContainsFunc(s[i:], unicode.IsControl)
		}
	}
	return true
}

const signHelp = `
Reading sign/<name> with the parameter "url", or writing it, returns what a page
gives to wx.config:

    $ vault read wechat/sign/myapp url=https://shop.example.com/item?id=7

"url" is the page's address as the browser shows it: location.href. A fragment is
cut off, nothing else is changed. In an HTTP query it has to be percent-encoded.

The signature is made with the account's jsapi ticket, which does not leave Vault.
It comes from Vault's memory: WeChat is asked at the first use, and then every ten
minutes by the background, as long as there is a signature in two hours. While
WeChat fails, the last ticket signs on, with a warning, for up to two hours after
WeChat last confirmed it.

A wrong signature shows only in the user's browser: check there that the address
that was signed ("url" in the answer) is the page's. A browser shows ASCII without
blanks: what it would never show, such as an address that was decoded on its way, is
signed with a warning.

An unknown name is answered 400.
`
