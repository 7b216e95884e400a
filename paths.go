package wechat

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// accountPath is what the paths of one area, such as config/ or token/, have of
// their own.
type accountPath struct {
	prefix      string // with a trailing slash
	noun        string // what the area lists, for OpenAPI; empty if it does not
	synopsis    string
	description string
	fields      map[string]*framework.FieldSchema // besides the name
	operations  map[logical.Operation]framework.OperationHandler
	exists      framework.ExistenceFunc
	anywhere    []logical.Operation     // what every node answers; the rest is the active node's
	list        framework.OperationFunc // nil lists the names alone
}

// paths makes the framework's paths of an area: its accounts, and the lists of
// them at every level. The pattern takes every name, so that a wrong one is
// answered with the rule instead of "unsupported path".
func (b *backend) paths(area accountPath) []*framework.Path {
	item := &framework.Path{
		Pattern: area.prefix + `(?P<name>[\s\S]+)`,
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeString, Description: "The account's name: " + nameRule + ".", Required: true},
		},
		Operations:      maps.Clone(area.operations),
		ExistenceCheck:  area.exists,
		HelpSynopsis:    area.synopsis,
		HelpDescription: area.description,
		DisplayAttrs:    &framework.DisplayAttributes{OperationPrefix: operationPrefix, ItemType: "Account"},
	}
	maps.Copy(item.Fields, area.fields)
	for operation, handler := range item.Operations {
		if !slices.Contains(area.anywhere, operation) {
			item.Operations[operation] = b.onActive(handler.(*framework.PathOperation))
		}
	}
	if area.noun == "" {
		return []*framework.Path{item}
	}
	all := &framework.Path{
		Pattern:         area.prefix + "?$",
		Fields:          maps.Clone(listFields),
		Operations:      map[logical.Operation]framework.OperationHandler{logical.ListOperation: b.listOperation(area, "")},
		HelpSynopsis:    "List the accounts of this mount.",
		HelpDescription: listHelp,
		DisplayAttrs:    &framework.DisplayAttributes{OperationPrefix: operationPrefix},
	}
	if area.list != nil {
		all.Fields["recursive"] = recursiveField
	}
	maps.Copy(item.Fields, all.Fields)
	item.Operations[logical.ListOperation] = b.listOperation(area, "-below")
	return []*framework.Path{item, all}
}

// listOperation lists the names of a level, or what the area has to tell of each: that
// only the active node knows.
func (b *backend) listOperation(area accountPath, suffix string) *framework.PathOperation {
	fields := map[string]*framework.FieldSchema{
		"keys": {Type: framework.TypeStringSlice, Description: "Names, and with a trailing slash the levels below."},
	}
	operation := &framework.PathOperation{
		Callback:     b.listAccounts,
		Summary:      "List the accounts of a level.",
		DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "list", OperationSuffix: area.noun + suffix},
		Responses:    map[int][]framework.Response{http.StatusOK: {{Description: "The accounts", Fields: fields}}},
	}
	if area.list == nil {
		return operation
	}
	fields["key_info"] = &framework.FieldSchema{Type: framework.TypeMap, Description: "What is known of each name."}
	operation.Callback = area.list
	return b.onActive(operation)
}

// onActive makes an operation the active node's. What other nodes have in memory is
// stale until an invalidation arrives, and they have handed out dead tokens: there it
// ends before anything is looked at, and Vault forwards the request.
func (b *backend) onActive(operation *framework.PathOperation) *framework.PathOperation {
	active := *operation
	active.ForwardPerformanceStandby, active.ForwardPerformanceSecondary = true, true
	active.Callback = func(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
		if !b.keeper.writable() {
			return nil, logical.ErrReadOnly
		}
		return operation.Callback(ctx, req, data)
	}
	return &active
}

// listFields are the parameters of every list.
var listFields = map[string]*framework.FieldSchema{
	"after": {Type: framework.TypeString, Query: true, Description: "List only what comes after this name."},
	"limit": {Type: framework.TypeInt, Query: true, Description: "List no more than this; 0 or -1 lists all."},
}

var recursiveField = &framework.FieldSchema{Type: framework.TypeBool, Query: true, Description: "List the accounts of all levels below, too."}

// accountName returns the name in the request's path.
func accountName(data *framework.FieldData) (string, error) {
	name := data.Get("name").(string)
	return name, checkName(name)
}

// listLevel returns the level in a list's path: empty, or a name with a trailing
// slash.
func listLevel(data *framework.FieldData) (string, error) {
	if data.Schema["name"] == nil {
		return "", nil // a name in the query does not count: policies are about paths
	}
	name := strings.TrimSuffix(data.Get("name").(string), "/")
	return name + "/", checkName(name)
}

// listAccounts lists the names of one level, the same in every area.
func (b *backend) listAccounts(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	level, err := listLevel(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	keys, err := req.Storage.List(ctx, storageKey(configPrefix, level))
	if err != nil {
		return nil, err
	}
	return logical.ListResponse(page(storedNames(keys), data)), nil
}

// page cuts a part out of keys, which are sorted, by the parameters of the list.
func page(keys []string, data *framework.FieldData) []string {
	if after := data.Get("after").(string); after != "" {
		n, found := slices.BinarySearch(keys, after)
		if found {
			n++
		}
		keys = keys[n:]
	}
	if limit := data.Get("limit").(int); limit > 0 && limit < len(keys) {
		keys = keys[:limit]
	}
	return keys
}

// configured returns the configuration of the account that a request is about. If it is nil,
// the request is answered with the other two.
func (b *backend) configured(ctx context.Context, req *logical.Request, name string) (cfg *config, unknown *logical.Response, err error) {
	cfg, err = b.keeper.configOf(ctx, req.Storage, name)
	if err == nil && cfg == nil {
		unknown = unknownAccount(ctx, req, name)
	}
	return cfg, unknown, err
}

// unknownAccount is the answer where a name is not configured. It names the list of status/:
// operators, on-call and teams may all read that one.
func unknownAccount(ctx context.Context, req *logical.Request, name string) *logical.Response {
	listed, level := "its names are listed with", levelOf(name)
	if below, err := req.Storage.List(ctx, storageKey(configPrefix, name+"/")); err == nil && len(below) > 0 {
		listed, level = name+" is a level, its accounts are listed with", name+"/"
	}
	return logical.ErrorResponse("no account %q is configured in the mount %s: %s LIST %s; an operator adds an account of that name at %s",
		name, req.MountPoint, listed, req.MountPoint+statusPrefix+level, req.MountPoint+configPrefix+name)
}

// withoutName is the answer to a request of an area that lacks the account's name, nil
// if the request is none of these.
func (b *backend) withoutName(req *logical.Request) *logical.Response {
	area := strings.TrimSuffix(req.Path, "/")
	if strings.Contains(area, "/") {
		return nil
	}
	path := b.Route(area + "/x")
	if path == nil || path.Operations[req.Operation] == nil || req.Operation == logical.ListOperation {
		return nil
	}
	return logical.ErrorResponse("the account's name is missing in the path: %[1]s%[2]s/<name>; the names are listed with LIST %[1]s%[3]s",
		req.MountPoint, area, statusPrefix)
}

// failureResponse is the answer to a request that ended in err, by the status
// of what went wrong with WeChat, its text after the given words. Any other
// error is passed on as it is: Vault recognises some of its own.
func failureResponse(words string, err error) (*logical.Response, error) {
	return failureAnswer(words, err, (*problem).Error)
}

// operatorResponse is failureResponse with WeChat's request ID and words, for
// callers who configure accounts and read no token.
func operatorResponse(words string, err error) (*logical.Response, error) {
	return failureAnswer(words, err, (*problem).OperatorError)
}

func failureAnswer(words string, err error, say func(*problem) string) (*logical.Response, error) {
	p := problemOf(err)
	if p == nil {
		return nil, err
	}
	text := words + ": " + say(p)
	if p.Status == http.StatusBadRequest {
		return logical.ErrorResponse(text), nil
	}
	return nil, logical.CodedError(p.Status, text)
}

// maxText is the longest text that a field may hold, in bytes, where it has no limit of
// its own that is less: that of the longest, ca_pem.
const maxText = maxCAPEM

// typeWords say what a field of each type takes.
var typeWords = map[framework.FieldType]string{
	framework.TypeString:         "a string",
	framework.TypeBool:           "true or false",
	framework.TypeInt:            "a whole number, or -1 for all",
	framework.TypeDurationSecond: "a whole number of seconds, or a duration like 90s or 5m, and not negative",
}

// checkTypes reports the first field that data holds in another type than its schema has,
// or in a text that is too long. Unlike the framework's own check it never shows a value.
func checkTypes(schema map[string]*framework.FieldSchema, data map[string]any) error {
	for field, value := range data {
		s := schema[field]
		if s == nil {
			continue
		}
		if text, ok := value.(string); ok && len(text) > maxText {
			return fmt.Errorf("%s is longer than %d bytes", field, maxText)
		}
		if !isOfType(s.Type, value) {
			return fmt.Errorf("%s must be %s", field, typeWords[s.Type])
		}
	}
	return nil
}

func isOfType(t framework.FieldType, value any) bool {
	switch t {
	case framework.TypeString:
		_, text := value.(string)
		_, number := value.(json.Number)
		return text || number
	case framework.TypeBool:
		// Of numbers the framework takes any but 0 for true.
		_, err := strconv.ParseBool(fmt.Sprint(value))
		return err == nil
	case framework.TypeInt:
		n, err := parseutil.ParseInt(value)
		return err == nil && n >= -1 && n <= math.MaxInt32
	case framework.TypeDurationSecond:
		_, err := wholeSeconds(value)
		return err == nil
	}
	return false
}

// checkFields reports that a write names fields which its path does not have. A pasted
// secret may be among the names, so one is shown only if it is nearly that of a field.
func checkFields(area string, schema map[string]*framework.FieldSchema, data map[string]any) error {
	var fields, unknown []string
	for field, s := range schema {
		if field != "name" && listFields[field] != s && field != "recursive" {
			fields = append(fields, field)
		}
	}
	slices.Sort(fields)
	hidden := 0
	for _, name := range slices.Sorted(maps.Keys(data)) {
		switch meant := nearest(fields, name); {
		case slices.Contains(fields, name):
		case name == "name":
			unknown = append(unknown, `"name" (the name is in the path)`)
		case meant != "":
			unknown = append(unknown, fmt.Sprintf("%q (did you mean %q?)", name, meant))
		default:
			hidden++
		}
	}
	if hidden > 0 {
		unknown = append(unknown, fmt.Sprintf("%d not shown, as a name may be a secret", hidden))
	}
	if len(unknown) == 0 {
		return nil
	}
	has := cmp.Or(strings.Join(fields, ", "), "no fields")
	return fmt.Errorf("unknown fields: %s; nothing was changed; %s has %s", strings.Join(unknown, ", "), area, has)
}

// maxForeign is how many bytes a name that is shown may have in its middle, where it
// differs from a field's: too few to be a secret.
const maxForeign = 7

// nearest returns the field from which name differs least, empty if it differs from each
// by more than half.
func nearest(fields []string, name string) string {
	name = strings.ToLower(name)
	meant, best := "", -2
	for _, field := range fields {
		same := sameEnds(field, name)
		if foreign := len(name) - same; same > 1 && foreign <= maxForeign && same-foreign > best {
			meant, best = field, same-foreign
		}
	}
	return meant
}

// sameEnds returns how many bytes a and b share at their beginnings and ends together.
func sameEnds(a, b string) int {
	begin, shorter := 0, min(len(a), len(b))
	for begin < shorter && a[begin] == b[begin] {
		begin++
	}
	end := 0
	for begin+end < shorter && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	return begin + end
}

const listHelp = `
The answer holds the names of one level. A key with a trailing slash is a level
of its own: LIST it to see the names below.
`
