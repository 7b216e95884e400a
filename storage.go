package wechat

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// The areas of storage. What is in which is told where its type is.
const (
	configPrefix   = "config/"
	tokenPrefix    = "token/"
	rotationPrefix = "rotation/"
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
	// The decoder's errors could quote the entry.
	if json.Unmarshal(entry.Value, &header) != nil {
		return false, fmt.Errorf("the storage entry %s cannot be decoded", key)
	}
	if header.Version != schemaVersion {
		return false, fmt.Errorf("the storage entry %s has schema version %d: this version of the plugin reads %d", key, header.Version, schemaVersion)
	}
	if json.Unmarshal(entry.Value, v) != nil {
		return false, fmt.Errorf("the storage entry %s cannot be decoded", key)
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
