package wechat

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// platform is all that the engine's core knows of a place where accounts are.
type platform struct {
	name  string // config.Kind of its accounts, and part of their records' keys
	title string // as texts call it

	// identity is what an account is known by there: accounts with the same have one
	// token, one record and one budget. It must not show a secret: it names the record.
	identity func(*config) string

	// rule tells what an errcode of one of the platform's calls means, and whether it is
	// documented.
	rule func(api string, errcode int) (rule, bool)

	// issuers grant what an account has there, its token first. Their places tell
	// credentials apart: see slot.
	issuers []*issuer
}

// slot is the place of a credential among those of its account.
type slot int

const (
	tokenSlot slot = 0
	maxSlots  slot = 3
)

// issuer grants one kind of credential.
type issuer struct {
	// credential names the kind: in storage, and for a ticket in requests.
	credential string

	// derived says that it grants in exchange for the account's token. If the platform
	// rejects that token, fetch returns a problem of upstream.ClassToken.
	derived bool

	// limits are those of its forced calls. The zero value: there are none.
	limits limits

	// policy is how such a credential lives for an account of this configuration.
	policy func(*config) kept.Policy

	// fetch makes one call. Its error is a *problem, unless the context has ended.
	fetch func(context.Context, *client, endpoint, input) (kept.Grant, error)
}

// limits is how often an issuer makes a forced call for one account.
type limits struct {
	perDay int // in any 24 hours
	apart  time.Duration
}

// recordKey is where the record of a credential is stored.
func (p *platform) recordKey(of slot, identity string) string {
	return storageKey(heldPrefix+p.name+"/"+p.issuers[of].credential+"/", identity)
}

// slotNamed returns the place of the derived credential of this name.
func (p *platform) slotNamed(name string) (slot, error) {
	var known []string
	for i, is := range p.issuers {
		if !is.derived {
			continue
		}
		if is.credential == name {
			return slot(i), nil
		}
		known = append(known, is.credential)
	}
	return 0, fmt.Errorf("type must be %s", strings.Join(known, " or "))
}
