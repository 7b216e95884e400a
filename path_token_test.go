package wechat

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestATokenIsReadWithItsSixFields(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		asked := time.Now().UTC()
		time.Sleep(90*time.Second + 500*time.Millisecond)
		resp := m.ok(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, map[string]any{
			"access_token":        m.sim.Current(testAppID),
			"appid":               testAppID,
			"ttl":                 int64(240),
			"rotation_period":     int64(6910),
			"last_vault_rotation": asked.Format(time.RFC3339Nano),
			"expire_time":         asked.Add(7200 * time.Second).Format(time.RFC3339),
		}, resp.Data)

		text, err := json.Marshal(resp.Data)
		require.NoError(t, err)
		var sent struct {
			TTL    int    `json:"ttl"`
			Period int    `json:"rotation_period"`
			Since  string `json:"last_vault_rotation"`
			Until  string `json:"expire_time"`
		}
		require.NoError(t, json.Unmarshal(text, &sent), "consumers parse integers and strings")
		require.Equal(t, 240, sent.TTL)
	})
}

func TestATokenIsNeitherLeasedNorWarnedOf(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		for range 2 { // from WeChat, then from the cache
			resp := m.ok(logical.ReadOperation, "token/demo", nil)
			require.Equal(t, &logical.Response{Data: resp.Data}, resp, "there is nothing but data")
		}
	})
}

func TestALongTokenIsPassedOnWhole(t *testing.T) {
	inBubble(t, wechatsim.Account{TokenLength: 2048}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		require.Len(t, m.served("demo")["access_token"], 2048)
		m.reopen()
		require.Len(t, m.served("demo")["access_token"], 2048)
	})
}

func TestTheTTLIsCapped(t *testing.T) {
	for _, c := range []struct {
		cap  any
		ttls map[time.Duration]int64 // by the token's age
	}{
		{"4m", map[time.Duration]int64{0: 240, time.Hour: 240, 6700 * time.Second: 210, 6904 * time.Second: 6, 6906 * time.Second: 5, 6909 * time.Second: 5}},
		{10, map[time.Duration]int64{0: 10, 6899 * time.Second: 10, 6901 * time.Second: 9, 6909 * time.Second: 5}},
		{0, map[time.Duration]int64{0: 6910, time.Second: 6909, time.Hour: 3310, 6909 * time.Second: 5}},
		{"24h", map[time.Duration]int64{0: 6910, time.Hour: 3310}},
	} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"max_ttl": c.cap})
			start := time.Now()
			ages := []time.Duration{}
			for age := range c.ttls {
				ages = append(ages, age)
			}
			slices.Sort(ages)
			for _, age := range ages {
				time.Sleep(time.Until(start.Add(age)))
				require.Equal(t, c.ttls[age], m.served("demo")["ttl"], "max_ttl %v, after %s", c.cap, age)
			}
		})
	}
}

func TestAnotherCapChangesTheTTLOfTheSameToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		before := m.served("demo")
		m.update("demo", map[string]any{"max_ttl": 30})
		after := m.served("demo")
		require.Equal(t, int64(30), after["ttl"])
		before["ttl"] = int64(30)
		require.Equal(t, before, after)
	})
}

// Two days in the life of an account, with restarts, with tokens replaced
// outside and with times at which WeChat fails, read every 41 s.
func TestNothingButTheTTLChangesBetweenReadsOfOneToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "5m"})
		start := time.Now()
		tokens := map[any]map[string]any{} // what was first read of each
		rotations := map[any]any{}         // the token of each last_vault_rotation
		var last any                       // the last token
		var first time.Time                // when it was read first
		var failing, calm time.Time        // when WeChat's last failure began and was over
		for n := 0; time.Since(start) < 48*time.Hour; n++ {
			switch {
			case n%97 == 0:
				m.reopen()
			case n%300 == 150:
				m.sim.ForceOutside(testAppID)
			case n%211 == 50:
				m.sim.Inject(wechatsim.Fault{Kind: "status"})
				failing, calm = time.Now(), time.Time{}
			case n%211 == 57:
				m.sim.ClearFaults()
				calm = time.Now()
			case n%40 == 20 && last == m.sim.Current(testAppID) && time.Since(first) < time.Hour:
				// WeChat says that less is left of the token than it said before.
				m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: "600", Times: 1})
			case n%123 == 0:
				m.update("demo", map[string]any{"request_timeout": 6})
			}
			resp, err := m.request(logical.ReadOperation, "token/demo", nil)
			if err != nil {
				require.False(t, failing.IsZero(), err)
				require.True(t, calm.IsZero() || time.Since(calm) <= time.Minute, err)
				time.Sleep(41 * time.Second)
				continue
			}
			data := resp.Data
			value := data["access_token"]
			ttl := data["ttl"].(int64)
			require.GreaterOrEqual(t, ttl, int64(5))
			require.LessOrEqual(t, ttl, int64(240))
			delete(data, "ttl")
			if tokens[value] == nil {
				require.NotContains(t, rotations, data["last_vault_rotation"], "a new token with the time of an old one")
				tokens[value], rotations[data["last_vault_rotation"]] = data, value
				_, errcode := m.sim.Check(value.(string))
				require.Zero(t, errcode)
				first = time.Now()
			} else {
				require.Equal(t, last, value, "a token came back")
			}
			require.Equal(t, tokens[value], data)
			last = value

			end, err := time.Parse(time.RFC3339, data["expire_time"].(string))
			require.NoError(t, err)
			require.GreaterOrEqual(t, time.Until(end), time.Duration(ttl)*time.Second, "the ttl ends with the token")
			if failing.IsZero() || !calm.IsZero() && time.Since(calm) > time.Minute {
				require.Empty(t, resp.Warnings, "WeChat does not fail")
			}
			time.Sleep(41 * time.Second)
		}
		require.Greater(t, len(tokens), 25)
	})
}

func TestAWarningComesOnlyWithADueTokenThatCannotBeReplaced(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "1m"})
		first := m.served("demo")
		warnings := func(age time.Duration) []string {
			time.Sleep(time.Until(m.sim.Calls("")[0].Time.Add(age)))
			resp := m.ok(logical.ReadOperation, "token/demo", nil)
			require.Equal(t, first["access_token"], resp.Data["access_token"])
			return resp.Warnings
		}
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503})
		for _, age := range []time.Duration{0, time.Minute, time.Hour, rotationPeriod - time.Millisecond} {
			require.Empty(t, warnings(age), "after %s", age)
		}
		for _, age := range []time.Duration{rotationPeriod + time.Minute, maxLifetime - kept.MinTTL} {
			got := warnings(age)
			require.Len(t, got, 1, "after %s", age)
			require.Contains(t, got[0], "valid until "+first["expire_time"].(string))
			require.Contains(t, got[0], "server error")
			require.Contains(t, got[0], "what to do:")
			require.NotContains(t, got[0], first["access_token"])
		}
	})
}

func TestTimesTellTheRealLifeOfAToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("early", map[string]any{"verify": false})
		m.sim.ForceOutside(testAppID) // WeChat issues the token, and an hour later hands it out
		issued := time.Now()
		time.Sleep(time.Hour)
		m.sim.SetLatency(3 * time.Second)
		asked := time.Now()
		token := m.read("early")
		end, err := time.Parse(time.RFC3339, token["expire_time"].(string))
		require.NoError(t, err)
		require.False(t, end.After(issued.Add(2*time.Hour)))
		require.WithinDuration(t, issued.Add(2*time.Hour), end, time.Second)
		rotated, err := time.Parse(time.RFC3339, token["last_vault_rotation"].(string))
		require.NoError(t, err)
		require.WithinDuration(t, asked, rotated, 3*time.Second)
		require.Equal(t, time.UTC, end.Location())
		require.Equal(t, time.UTC, rotated.Location())
	})
}

func TestEachAccountHasItsOwnToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("team", nil)
		m.write("team/a", map[string]any{"appid": otherAppID})
		for name, appid := range map[string]string{"team": testAppID, "team/a": otherAppID} {
			token := m.served(name)
			require.Equal(t, appid, token["appid"], name)
			require.Equal(t, m.sim.Current(appid), token["access_token"], name)
		}
	})
}

func TestAnUnknownNameNamesTheMountOfTheRequest(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		for _, mountPoint := range []string{"wechat/", "tenants/7/wechat/"} {
			for _, name := range []string{"demo", "team", "team/b", "team/a/b", "Team/a"} {
				m.changesNothing(0, func() {
					resp, err := m.HandleRequest(t.Context(), &logical.Request{
						Operation: logical.ReadOperation, Path: "token/" + name, Storage: m.storage, MountPoint: mountPoint,
					})
					status, text := m.status(resp, err)
					require.Equal(t, http.StatusBadRequest, status)
					require.Contains(t, text, mountPoint+"config/"+name)
					require.Contains(t, text, "the mount "+mountPoint+":")
					require.Contains(t, text, "LIST "+mountPoint+"status/")
				})
			}
		}
	})
}

func TestAReadThatFailsSaysWhatToDo(t *testing.T) {
	for name, c := range refusals {
		if c.data != nil {
			continue // it takes a wrong configuration, which a read has not
		}
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("team/demo", map[string]any{"verify": false})
				if c.settings != nil {
					m.sim.Update(testAppID, c.settings)
				}
				if c.fault != nil {
					m.sim.Inject(*c.fault)
				}
				stored := m.snapshot()
				resp, err := m.request(logical.ReadOperation, "token/team/demo", nil)
				status, text := m.status(resp, err)
				require.Equal(t, c.status, status)
				require.Contains(t, text, `no token for account "team/demo"`)
				require.Contains(t, text, "what to do:")
				for _, words := range c.says {
					require.Contains(t, text, words)
				}
				require.NotContains(t, text, "verify=false", "there is nothing to verify")
				if current := m.sim.Current(testAppID); current != "" {
					require.NotContains(t, shown(t, resp, err), current)
				}
				require.Equal(t, stored, m.snapshot())
			})
		})
	}
}
