package wechat

import (
	"maps"
	"slices"
	"testing"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestTheAnswersOfLoginsAreAsDeclared(t *testing.T) {
	inBubble(t, wechatsim.Account{Bound: true}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		web := func(scope string) map[string]any {
			return map[string]any{"code": m.sim.Mint(testAppID, wechatsim.Code{API: wechatsim.APIOAuth2, Scope: scope}).Code}
		}
		for _, c := range []struct {
			path    string
			data    map[string]any
			missing []string // declared, and not in this answer
		}{
			{"code2session/team/a", map[string]any{"js_code": m.mini()}, []string{"session_key"}},
			{"code2session/team/a", map[string]any{"js_code": m.mini(), "include_session_key": "true"}, nil},
			{"oauth2/team/a", web("snsapi_base"), nil},
			{"oauth2/team/a", web("snsapi_userinfo"), nil},
			{"clear-quota/team/a", nil, nil},
		} {
			resp := m.ok(logical.UpdateOperation, c.path, c.data)
			declared := schema.GetResponseSchema(t, m.Route(c.path), logical.UpdateOperation)
			require.NotNil(t, declared, c.path)
			if len(declared.Fields) == 0 {
				require.Nil(t, resp, c.path)
				continue
			}
			require.ElementsMatch(t, slices.Collect(maps.Keys(declared.Fields)), append(slices.Collect(maps.Keys(resp.Data)), c.missing...), c.path)
			schema.ValidateResponse(t, declared, resp, true)
		}
	})
}

func TestWhatIsSecretInALoginIsMarked(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		marked := map[string]bool{}
		mark := func(area string, fields map[string]*framework.FieldSchema) {
			for name, field := range fields {
				if field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive {
					marked[area+name] = true
				}
			}
		}
		for _, area := range []string{"code2session/", "oauth2/", "clear-quota/"} {
			mark(area, m.Route(area+"demo").Fields)
			mark(area+"answer/", schema.GetResponseSchema(t, m.Route(area+"demo"), logical.UpdateOperation).Fields)
		}
		require.Equal(t, map[string]bool{
			"code2session/js_code": true, "code2session/answer/openid": true, "code2session/answer/unionid": true, "code2session/answer/session_key": true,
			"oauth2/code": true, "oauth2/answer/openid": true, "oauth2/answer/unionid": true,
			"oauth2/answer/access_token": true, "oauth2/answer/refresh_token": true,
		}, marked)
	})
}

func TestTheHelpOfLogins(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for path, says := range map[string]string{
			"code2session/demo": "needs no AppSecret", "oauth2/demo": "needs no AppSecret", "clear-quota/demo": "ten times in a month",
		} {
			require.Contains(t, m.ok(logical.HelpOperation, path, nil).Data["help"], says, path)
		}
		doc := m.ok(logical.HelpOperation, "", nil).Data["openapi"].(*framework.OASDocument)
		for path, id := range map[string]string{
			"/code2session/{name}": "wechat-exchange-mini-program-code", "/oauth2/{name}": "wechat-exchange-oauth2-code", "/clear-quota/{name}": "wechat-clear-quota",
		} {
			require.NotNil(t, doc.Paths[path], path)
			require.Nil(t, doc.Paths[path].Get, path)
			require.Equal(t, id, doc.Paths[path].Post.OperationID)
		}
	})
}
