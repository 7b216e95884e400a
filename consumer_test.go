package wechat

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/jsonutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// vaultAnswer is what a consumer has of an answer after its way over HTTP: numbers
// are json.Number, as with Vault's own client.
type vaultAnswer struct {
	LeaseID       string         `json:"lease_id"`
	LeaseDuration int            `json:"lease_duration"`
	Renewable     bool           `json:"renewable"`
	Data          map[string]any `json:"data"`
	Warnings      []string       `json:"warnings"`
}

// received reads a token as a consumer does.
func (m *mount) received(name string) vaultAnswer {
	m.t.Helper()
	resp := m.ok(logical.ReadOperation, "token/"+name, nil)
	body, err := json.Marshal(logical.LogicalResponseToHTTPResponse(resp))
	require.NoError(m.t, err)
	var a vaultAnswer
	require.NoError(m.t, jsonutil.DecodeJSON(body, &a))
	return a
}

// text is a field that has to be a string.
func (a vaultAnswer) text(t *testing.T, field string) string {
	t.Helper()
	text, ok := a.Data[field].(string)
	require.True(t, ok, "%s is %T, want a string", field, a.Data[field])
	return text
}

// seconds is a field that has to be an integer. One that was written with a
// fraction or an exponent is none: not every parser takes 240.0 for one.
func (a vaultAnswer) seconds(t *testing.T, field string) time.Duration {
	t.Helper()
	number, ok := a.Data[field].(json.Number)
	require.True(t, ok, "%s is %T, want a number", field, a.Data[field])
	n, err := number.Int64()
	require.NoError(t, err, field)
	return time.Duration(n) * time.Second
}

// consumer reproduces the rules by which an application handles what it reads from
// Vault.
type consumer struct {
	// next is when it reads again after an answer.
	next func(t *testing.T, a vaultAnswer) time.Duration

	// sees is what it compares: another value is another secret to it, with
	// which it restarts or rewrites something.
	sees func(t *testing.T, a vaultAnswer) string
}

// onlyToken is for consumers that look at nothing but the token.
func onlyToken(t *testing.T, a vaultAnswer) string {
	t.Helper()
	return a.text(t, "access_token")
}

// every is for consumers that read at their own interval.
func every(d time.Duration) func(*testing.T, vaultAnswer) time.Duration {
	return func(*testing.T, vaultAnswer) time.Duration { return d }
}

var consumers = map[string]consumer{
	// Vault Agent, consul-template and Nomad share one engine.
	"Vault Agent": {agentWaits, onlyToken},

	// With allowStaticCreds. What it compares are all fields but those that tell
	// of the rotation.
	"Secrets Operator": {operatorWaits, func(t *testing.T, a vaultAnswer) string {
		t.Helper()
		compared := maps.Clone(a.Data)
		maps.DeleteFunc(compared, func(field string, _ any) bool { return operatorIgnores.MatchString(field) })
		text, err := json.Marshal(compared)
		require.NoError(t, err)
		return string(text)
	}},

	// At the interval of the example, with the property of the example.
	"External Secrets": {every(time.Minute), onlyToken},

	// At the driver's default interval. Of an answer with a mapping in the field
	// "data", as KV's second version gives it, the provider takes that instead.
	"CSI provider": {every(2 * time.Minute), func(t *testing.T, a vaultAnswer) string {
		t.Helper()
		_, nested := a.Data["data"].(map[string]any)
		require.False(t, nested)
		return a.text(t, "access_token")
	}},

	// Its lease container goes by the lease alone, so an application with Spring,
	// like any with a client of its own, goes by ttl.
	"Spring": {func(t *testing.T, a vaultAnswer) time.Duration {
		t.Helper()
		require.Zero(t, a.LeaseDuration, "the container would schedule by the lease")
		return a.seconds(t, "ttl")
	}, onlyToken},
}

// agentWaits is the rule of Vault Agent for a secret without a lease: one with a
// rotation_period is read again after its ttl and a second. The ttl has to be a
// json.Number; the Agent asserts that without a check. What has no
// rotation_period counts as static, and is read again after minutes.
func agentWaits(t *testing.T, a vaultAnswer) time.Duration {
	t.Helper()
	require.Empty(t, a.LeaseID, "it would be renewed")
	require.False(t, a.Renewable)
	require.Contains(t, a.Data, "rotation_period", "it would count as static")
	return a.seconds(t, "ttl") + time.Second
}

// operatorIgnores are the fields that the Secrets Operator leaves out when it
// compares static credentials.
var operatorIgnores = regexp.MustCompile(`^ttl|rotation_schedule|rotation_period|last_vault_rotation|_raw$`)

// operatorWaits is the rule of the Secrets Operator: the time of the rotation is
// an RFC 3339 string and after 1970, the period an integer of at least one, and
// it reads again half a second after ttl, with a jitter. At a ttl of two seconds
// or less it would ask again and again for ten seconds, and then fail.
func operatorWaits(t *testing.T, a vaultAnswer) time.Duration {
	t.Helper()
	rotated, err := time.Parse(time.RFC3339Nano, a.text(t, "last_vault_rotation"))
	require.NoError(t, err)
	require.Positive(t, rotated.Unix())
	require.GreaterOrEqual(t, a.seconds(t, "rotation_period"), time.Second)
	require.Greater(t, a.seconds(t, "ttl"), 2*time.Second)
	const jitter = 150 * time.Millisecond // at most
	return a.seconds(t, "ttl") + 500*time.Millisecond + jitter
}

// Three days with each consumer: it always holds a token that WeChat accepts, for
// two minutes more at least, and sees a change if and only if the token changed.
func TestEveryConsumerStaysFreshAndIsNotDisturbed(t *testing.T) {
	for name, c := range consumers {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"sync_interval": "5m"})
				start, reads, changes := time.Now(), 0, 0
				held, seen := vaultAnswer{}, ""
				for time.Since(start) < 3*24*time.Hour {
					a := m.received("demo")
					reads++
					if sees := c.sees(t, a); sees != seen {
						require.NotEqual(t, held.Data["access_token"], a.Data["access_token"], "it sees a change where there is none")
						changes, seen = changes+1, sees
					}
					held = a
					wait := c.next(t, a)
					require.GreaterOrEqual(t, wait, kept.MinTTL, "it loops")
					time.Sleep(wait)
					_, errcode := m.sim.Check(held.text(t, "access_token"))
					require.Zero(t, errcode, "it holds a token that WeChat does not accept")
					end, err := time.Parse(time.RFC3339, held.text(t, "expire_time"))
					require.NoError(t, err)
					require.GreaterOrEqual(t, time.Until(end), 2*time.Minute, "it holds a token that is about to end")
				}
				issued := 0
				for _, call := range m.sim.Calls("") {
					if call.Issued {
						issued++
					}
				}
				require.Greater(t, issued, 35)
				require.InDelta(t, issued, changes, 1, "the last token may not have been read yet")
				require.Less(t, reads, 3*24*60+2*issued, "a read a minute would do")
			})
		})
	}
}

// A token replaced by force within the second in which the one before came: the
// Secrets Operator knows times to the second only, and must see it all the same.
func TestTheOperatorSeesTokensOfTheSameSecond(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.received("demo")
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		second := m.received("demo")
		operator := consumers["Secrets Operator"]
		require.NotEqual(t, operator.sees(t, first), operator.sees(t, second))
		require.NotEqual(t, first.text(t, "last_vault_rotation"), second.text(t, "last_vault_rotation"))
	})
}

// Some names have a meaning to consumers.
func TestNoFieldHasANameThatConsumersTakeForAnotherThing(t *testing.T) {
	taken := map[string]string{
		"data":              "KV's second version, to the CSI provider and to Vault's own command line",
		"metadata":          "KV's second version, to the Agent, which looks there for a deletion",
		"certificate":       "PKI, to the Agent, which waits for its expiration",
		"expiration":        "PKI, to the Agent, together with certificate",
		"secret_id":         "an AppRole's, to the Agent, which waits for its secret_id_ttl",
		"secret_id_ttl":     "an AppRole's, to the Agent",
		"rotation_schedule": "a schedule in place of a period, to the Secrets Operator",
		"_raw":              "the whole answer, in a Secret of the Secrets Operator",
	}
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for field := range m.received("demo").Data {
			require.Empty(t, taken[field], "%s is of %s", field, taken[field])
			// Keys of a Secret, and variables of an environment once they are in
			// capitals.
			require.Regexp(t, `^[a-z][a-z_]*$`, field)
		}
	})
}

// Terraform's data source keeps each field as a string, what is none as JSON: an
// integer has to come out as its digits, nothing as an object or null.
func TestTerraformReadsEveryFieldAsText(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		a := m.received("demo")
		texts := map[string]string{}
		for field, value := range a.Data {
			text, ok := value.(string)
			if !ok {
				encoded, err := json.Marshal(value)
				require.NoError(t, err)
				text = string(encoded)
			}
			require.NotEmpty(t, text, field)
			require.False(t, strings.ContainsAny(text, "{[") || text == "null", "%s is %s", field, text)
			texts[field] = text
		}
		require.Equal(t, "240", texts["ttl"])
		require.Equal(t, "6910", texts["rotation_period"])
		require.Equal(t, m.sim.Current(testAppID), texts["access_token"])
		require.Equal(t, []string{"access_token", "appid", "expire_time", "last_vault_rotation", "rotation_period", "ttl"},
			slices.Sorted(maps.Keys(texts)))
	})
}

// Parsers that take every number for a floating-point one, as that of JavaScript,
// and those with a type for integers of 32 bits get the same seconds.
func TestSecondsSurviveEveryParser(t *testing.T) {
	for _, maxTTL := range []string{"10s", "4m", "24h", "0"} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"max_ttl": maxTTL})
			resp := m.ok(logical.ReadOperation, "token/demo", nil)
			text, err := json.Marshal(resp.Data)
			require.NoError(t, err)
			var floating struct {
				TTL float64 `json:"ttl"`
			}
			var small struct {
				TTL int32 `json:"ttl"`
			}
			require.NoError(t, json.Unmarshal(text, &floating))
			require.NoError(t, json.Unmarshal(text, &small))
			require.Equal(t, fmt.Sprint(resp.Data["ttl"]), fmt.Sprint(small.TTL))
			require.Equal(t, float64(small.TTL), floating.TTL)
		})
	}
}
