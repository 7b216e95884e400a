package wechat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// The areas of storage. What is in which is told where its type is.
const (
	configPrefix = "config/"
	heldPrefix   = "held/"
)

// Paths that are told of outside of their own files.
const (
	tokenPrefix  = "token/"
	ticketPrefix = "ticket/"
	statusPrefix = "status/"
)

// schemaVersion is written into every storage entry, so that a later version can
// tell what it reads.
const schemaVersion = 1

const (
	maxNameLength = 255

	nameRule = "one or more segments joined by /, each of ASCII letters, digits, _, - and ., beginning and ending with a letter or digit; at most 255 characters"
)

// namePattern is the contract's rule for account names, its length aside.
var namePattern = regexp.MustCompile(`^[0-9A-Za-z](?:[0-9A-Za-z_.-]*[0-9A-Za-z])?(?:/[0-9A-Za-z](?:[0-9A-Za-z_.-]*[0-9A-Za-z])?)*$`)

// checkName says why name cannot name an account, or returns nil.
func checkName(name string) error {
	if len(name) > maxNameLength || !namePattern.MatchString(name) {
		return fmt.Errorf("the name of an account is %s", nameRule)
	}
	return nil
}

// levelOf returns the level of names that the account's is on, with a slash at its end:
// what a policy bounds. It is empty at the top.
func levelOf(name string) string { return name[:strings.LastIndexByte(name, '/')+1] }

// storageKey is where what has a name is stored in an area. Vault's storage
// refuses keys with two dots in a row, which a name may have.
func storageKey(prefix, name string) string {
	return prefix + strings.ReplaceAll(name, "..", ".%2E")
}

// storedName is the name at the end of a storage key, which storageKey made.
func storedName(key string) string { return strings.ReplaceAll(key, "%2E", ".") }

// storedNames turns keys of storage into names, and sorts them.
func storedNames(keys []string) []string {
	for i, key := range keys {
		keys[i] = storedName(key)
	}
	slices.Sort(keys)
	return keys
}

// storageTimeout bounds the storage operations that belong to one call of WeChat: they
// outlive the request that caused them, so that no answer is lost.
const storageTimeout = 30 * time.Second

// errUnreadable is wrapped by the errors of readEntry for an entry that is there, and
// that this version of the plugin cannot read. Storage itself is well then, and to try
// again changes nothing.
var errUnreadable = errors.New("is unreadable")

// otherVersion is the way out where another version of the plugin has written the entry.
const otherVersion = "run the version of the plugin that wrote it, or "

// unreadable is an errUnreadable of the entry at key that names the way out. The decoder's
// errors are not in it: they could quote the entry.
func unreadable(key, why, instead string) error {
	remedy := "delete the account and write it anew"
	if strings.HasPrefix(key, heldPrefix) {
		remedy = "delete every account with this appid and write them anew"
	}
	return fmt.Errorf("the storage entry %s %w: %s; %s%s", key, errUnreadable, why, instead, remedy)
}

// readEntry decodes the entry at key into v and checks its schema version. It
// reports whether there is an entry.
func readEntry(ctx context.Context, s logical.Storage, key string, v any) (bool, error) {
	entry, err := s.Get(ctx, key)
	if err != nil || entry == nil {
		return false, err
	}
	var header struct {
		Version int `json:"version"`
	}
	err = json.Unmarshal(entry.Value, &header)
	if err == nil && header.Version != schemaVersion {
		why := fmt.Sprintf("it has schema version %d, and this version of the plugin reads %d", header.Version, schemaVersion)
		return false, unreadable(key, why, otherVersion)
	}
	if err == nil {
		err = json.Unmarshal(entry.Value, v)
	}
	if err != nil {
		return false, unreadable(key, "it cannot be decoded", "")
	}
	return true, nil
}

func writeEntry(ctx context.Context, s logical.Storage, key string, v any) error {
	entry, err := logical.StorageEntryJSON(key, v)
	if err != nil {
		return err
	}
	return s.Put(ctx, entry)
}

// maxDetail bounds, in bytes, what is told of an error of Vault's storage.
const maxDetail = 256

// storageProblem is the problem of a write that Vault's storage did not take.
func storageProblem(err error) *problem {
	text := err.Error()
	p := &problem{Rule: ruleStorage, Detail: strings.ToValidUTF8(text[:min(len(text), maxDetail)], "")}
	if forbidsWrites(err) {
		p.Advice = adviceUnseal
	}
	return p
}

// adviceUnseal is what to do about forbidsWrites: to try again is no use.
const adviceUnseal = "restart Vault, or seal and unseal it: when it was unsealed the plugin's binary was missing, and until then it lets the plugin write nothing"

// forbidsWrites reports whether err is Vault's refusal of every write of the mount: it
// lets an external plugin write only if it was there when Vault was unsealed.
func forbidsWrites(err error) bool { return strings.Contains(err.Error(), "during setup") }

// asProblem is err as it is remembered. What is not a problem with WeChat is
// one with storage.
func asProblem(err error) *problem {
	if p := problemOf(err); p != nil {
		return p
	}
	return storageProblem(err)
}

const (
	// walChange is the kind of the entries of the write-ahead log that guard a change of
	// several writes: an account leaves the record of its token.
	walChange = "change"

	// walGuard is the kind of the entries that guard a forced call, see guard.
	walGuard = "guard"
)

// decodeWAL brings the data of an entry, which Vault hands over as a map, into
// its type.
func decodeWAL(data, into any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// errPending tells Vault to keep an entry of the write-ahead log; it does not log
// that.
var errPending = errors.New("still pending")
