package wechat

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// configFields are the fields of an account, the table of docs/reference.md in code.
var configFields = map[string]*framework.FieldSchema{
	"appid": {
		Type:         framework.TypeString,
		Description:  "The account's AppID, not its original ID (gh_...). Case-sensitive: copy it exactly. Required to create.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "AppID"},
	},
	"secret": {
		Type:         framework.TypeString,
		Description:  "The account's AppSecret. Required to create, and to change base_url, proxy_url or ca_pem. Never read back.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "AppSecret", Sensitive: true},
	},
	"base_url": {
		Type:         framework.TypeString,
		Default:      defaultBaseURL,
		Description:  "Where WeChat is, without a path of its API: https; http to a loopback address only. Default: " + defaultBaseURL + ".",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Base URL", Group: "Network"},
	},
	"proxy_url": {
		Type:         framework.TypeString,
		Description:  "The egress proxy of this account: http, https or socks5. A user and password in it are percent-encoded, and never read back. Without it HTTPS_PROXY and NO_PROXY of the Vault server's environment apply.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Proxy URL", Sensitive: true, Group: "Network"},
	},
	"ca_pem": {
		Type:         framework.TypeString,
		Description:  "Root certificates for base_url besides the system's, in PEM.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "CA certificates", EditType: "textarea", Group: "Network"},
	},
	"request_timeout": {
		Type:         framework.TypeDurationSecond,
		Default:      int(defaultRequestTimeout / time.Second),
		Description:  "How long one call to WeChat may take: 1s to 30s. Default: 5s.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Request timeout", Group: "Network"},
	},
	"sync_interval": {
		Type:         framework.TypeDurationSecond,
		Default:      int(defaultSyncInterval / time.Second),
		Description:  "How often the engine checks that its token is still the current one: at least 1m, or 0 for never. Where accounts share a token, the shortest of theirs counts. Default: 5m.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Sync interval"},
	},
	"max_ttl": {
		Type:         framework.TypeDurationSecond,
		Default:      int(defaultMaxTTL / time.Second),
		Description:  "Cap on the ttl that readers of the token are told: at least 10s, or 0 for none. After a forced refresh they have the new token within it. Default: 4m.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Maximum TTL"},
	},
	"verify": {
		Type:         framework.TypeBool,
		Default:      true,
		Description:  "Try the credentials against WeChat before anything is stored. Not stored itself. Default: true.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Verify"},
	},
}

var (
	configFieldNames = slices.Sorted(maps.Keys(configFields))
	storedFieldNames = slices.DeleteFunc(slices.Clone(configFieldNames), func(name string) bool { return name == "verify" })
)

// configResponse is what a read answers with: secret and verify are not in it.
var configResponse = func() map[string]*framework.FieldSchema {
	fields := maps.Clone(configFields)
	delete(fields, "secret")
	delete(fields, "verify")
	fields["secret_set_time"] = &framework.FieldSchema{Type: framework.TypeString, Description: "When the secret was written last, RFC 3339 in UTC."}
	return fields
}()

func (b *backend) configPaths() []*framework.Path {
	operation := func(callback framework.OperationFunc, verb, summary string, responses map[int][]framework.Response) *framework.PathOperation {
		return &framework.PathOperation{
			Callback:     callback,
			Summary:      summary,
			Responses:    responses,
			DisplayAttrs: &framework.DisplayAttributes{OperationVerb: verb, OperationSuffix: "account"},
		}
	}
	none := map[int][]framework.Response{http.StatusNoContent: {{Description: "Done"}}}
	write := operation(b.writeConfig, "configure", "Create or change an account.", none)
	return b.paths(accountPath{
		prefix:      configPrefix,
		noun:        "accounts",
		synopsis:    "The configuration of an account: its AppID and AppSecret.",
		description: configHelp,
		fields:      configFields,
		exists:      b.configExists,
		anywhere:    []logical.Operation{logical.ReadOperation},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.ReadOperation: operation(b.readConfig, "read", "Read an account's configuration, without its secret.",
				map[int][]framework.Response{http.StatusOK: {{Description: "The configuration", Fields: configResponse}}}),
			logical.DeleteOperation: operation(b.deleteConfig, "delete", "Delete an account with its token.", none),
		},
	})
}

func (b *backend) configExists(ctx context.Context, req *logical.Request, data *framework.FieldData) (bool, error) {
	name, err := accountName(data)
	if err != nil {
		return false, nil //nolint:nilerr // the write itself is answered with the rule
	}
	cfg, err := loadConfig(ctx, req.Storage, name)
	return cfg != nil, err
}

func (b *backend) readConfig(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	cfg, err := loadConfig(ctx, req.Storage, name)
	if err != nil || cfg == nil {
		return nil, err
	}
	return &logical.Response{Data: cfg.fields()}, nil
}

func (b *backend) writeConfig(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	verify := data.Get("verify").(bool) && sets(data, "appid", "secret", "base_url", "proxy_url", "ca_pem", "verify")
	var before *config
	done, err := b.keeper.configure(ctx, req.Storage, name, verify, func(old *config) (*config, error) {
		before = old
		if old != nil && !sets(data, configFieldNames...) {
			return nil, fmt.Errorf("the write names no field: nothing was changed; write %s; verify=true alone tries the stored credentials",
				strings.Join(configFieldNames, ", "))
		}
		return old.update(data)
	})
	if err != nil && forbidsWrites(err) {
		err = storageProblem(err)
	}
	if err != nil {
		return refusedWrite(name, before != nil, sets(data, storedFieldNames...), upstream.WithoutRetryPromise(err))
	}
	if done.invalid != nil {
		return logical.ErrorResponse(done.invalid.Error()), nil
	}
	b.logins.mended(name, "")
	resp := &logical.Response{}
	if done.ended {
		resp.AddWarning("The revocation that was pending has ended, incomplete: it was of the other appid's token.")
	}
	b.warnOfTwins(ctx, resp, name, done.account)
	if len(resp.Warnings) == 0 {
		return nil, nil
	}
	return resp, nil
}

// refusedWrite is the answer to a write that err prevents, of an account that is stored
// or is not. Where the credentials could not be tried, and the write changes something,
// it tells how to store it all the same.
func refusedWrite(name string, stored, changes bool, err error) (*logical.Response, error) {
	words := fmt.Sprintf("account %q was not stored", name)
	switch {
	case !changes:
		words = fmt.Sprintf("the credentials of account %q could not be confirmed, and nothing was changed", name)
	case stored:
		words = fmt.Sprintf("account %q was not changed, and keeps the settings and the token that it had", name)
	}
	if p := problemOf(err); p != nil && changes && untried(p) {
		hinted := *p
		hinted.Advice += ", or write with verify=false to store this without trying it"
		err = &hinted
	}
	return operatorResponse(words, err)
}

// untried reports whether p says nothing of the credentials, and will for longer than a
// moment.
func untried(p *problem) bool {
	return p.Status == http.StatusBadGateway || isQuota(p)
}

// warnOfTwins adds a warning that tells of the mount's other accounts with the same
// appid at the same upstream. It names those of the same level, whose names the writer
// may know, and counts the others.
func (b *backend) warnOfTwins(ctx context.Context, resp *logical.Response, name string, a *account) {
	timeout := time.NewTimer(loadPatience)
	defer timeout.Stop()
	select {
	case <-b.keeper.loaded:
	case <-ctx.Done():
	case <-timeout.C:
		resp.AddWarning("Not all accounts of this mount are loaded yet, so others with the same appid may not be told of.")
	}
	twins := a.holder.others(name)
	near := slices.DeleteFunc(slices.Clone(twins), func(twin string) bool { return levelOf(twin) != levelOf(name) })
	if far := len(twins) - len(near); far == len(twins) && far > 0 {
		near = append(near, fmt.Sprintf("%d at other levels", far))
	} else if far > 0 {
		near = append(near, fmt.Sprintf("and %d at other levels", far))
	}
	if len(near) > 0 {
		resp.AddWarning(fmt.Sprintf("Other accounts of this mount have the same appid: %s. WeChat has one token for it: a forced refresh of one replaces the token of all.", strings.Join(near, ", ")))
	}
}

func (b *backend) deleteConfig(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	err = b.keeper.delete(ctx, req.Storage, name)
	switch {
	case err == nil:
		b.logins.forget(name)
	case forbidsWrites(err):
		return failureResponse(fmt.Sprintf("account %q was not deleted", name), storageProblem(err))
	}
	return nil, err
}

const configHelp = `
Writing config/<name> creates an account, or changes the fields that the write
names. A new account needs "appid" and "secret":

    $ vault write wechat/config/myapp appid=wx0123456789abcdef secret=-

With "-" the secret is read from standard input, so that it appears neither in
the shell's history nor in the process list. It is never read back.

The credentials are tried against WeChat before anything is stored. If WeChat
refuses them the answer says why, and nothing changes: an account that is there
keeps its settings and its token. If WeChat cannot be reached, or the quota of the
day is used up, verify=false stores them all the same. verify=true alone tries what
is stored.

A change of base_url, proxy_url or ca_pem needs "secret" in the same write: they
decide where the secret is sent. Changing appid or base_url drops the account's
token at once; changing only the secret keeps it.

A write with an unknown field, or with none at all, is refused and changes
nothing.

Deleting config/<name> removes the account. Accounts with the same appid and
base_url share one token, which goes with the last of them.
`
