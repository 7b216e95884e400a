package wechat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// What the core knows of a platform is a value. This one is made up, and as unlike WeChat as
// the next ones are: a token is given again until it ends, none is replaced on demand, and
// the errcodes are its own.

// madeUp is that platform with what it has granted.
type madeUp struct {
	platform

	mu      sync.Mutex // guards what follows
	tokens  int        // calls for one
	token   kept.Grant
	rejects string // a token that it no longer accepts
	fails   *problem
}

const (
	madeUpLife = time.Hour

	// errcodeMadeUp is the daily quota at WeChat, and a wrong secret here.
	errcodeMadeUp = errcodeQuota
)

func newMadeUp() *madeUp {
	p := &madeUp{}
	p.platform = platform{
		name:     "made-up",
		title:    "Made Up",
		identity: func(cfg *config) string { return "of/" + cfg.AppID },
		rule: func(string, int) (rule, bool) {
			return rule{Class: upstream.ClassCredentials, Status: http.StatusBadRequest, Backoff: backoffPerson, Meaning: "the key is wrong", Advice: "write another key"}, true
		},
		issuers: []*issuer{
			{
				credential: "pass", fetch: p.pass,
				policy: func(*config) kept.Policy {
					return kept.Policy{Life: madeUpLife, Margin: time.Minute, Apart: time.Second}
				},
			},
			{
				credential: "stamp", derived: true, fetch: p.stamp,
				policy: func(*config) kept.Policy { return kept.Policy{Life: time.Minute, Margin: 10 * time.Second} },
			},
		},
	}
	return p
}

// set changes what it answers from now on.
func (p *madeUp) set(rejects string, fails *problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rejects, p.fails = rejects, fails
}

// granted returns how many calls for a token there were, and when the present one ends.
func (p *madeUp) granted() (calls int, end time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tokens, p.token.Asked.Wall.Add(madeUpLife)
}

func (p *madeUp) calls() int {
	calls, _ := p.granted()
	return calls
}

// pass grants the token again until it has ended.
func (p *madeUp) pass(_ context.Context, _ *client, e endpoint, in input) (kept.Grant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens++
	now := moment()
	switch {
	case in.force:
		return kept.Grant{}, errors.New("a forced call was made")
	case p.fails != nil:
		r, _ := e.rule("pass", p.fails.Errcode)
		return kept.Grant{}, &problem{Rule: r, Errcode: p.fails.Errcode, HadNoEffect: true}
	case p.token.Value == p.rejects || !now.Wall.Before(p.token.Asked.Wall.Add(madeUpLife)):
		p.token = kept.Grant{Value: fmt.Sprintf("pass-%d", p.tokens), Asked: now}
	}
	g := p.token
	g.Life = g.Asked.Wall.Add(madeUpLife).Sub(now.Wall)
	g.Asked, g.Answered = now, now
	return g, nil
}

func (p *madeUp) stamp(_ context.Context, _ *client, _ endpoint, in input) (kept.Grant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in.parent == p.rejects {
		return kept.Grant{}, &problem{Rule: rejected("the pass is not accepted"), Errcode: 1, HadNoEffect: true}
	}
	now := moment()
	return kept.Grant{Value: "stamp with " + in.parent, Life: time.Minute, Asked: now, Answered: now}, nil
}

// atMadeUp runs test on a mount with two accounts of that platform, which are one there.
func atMadeUp(t *testing.T, test func(t *testing.T, m *mount, p *madeUp)) {
	t.Helper()
	p := newMadeUp()
	p.set("none", nil)
	platforms[p.name] = &p.platform
	defer delete(platforms, p.name)
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, name := range []string{"a", "b"} {
			cfg := newConfig()
			cfg.Kind, cfg.ID, cfg.Credentials, cfg.AppID, cfg.Secret, cfg.MaxTTL = p.name, name, name, "corp", testSecret, 0
			require.NoError(t, storeConfig(t.Context(), m.storage, name, cfg))
		}
		m.reopen()
		test(t, m, p)
		require.Empty(t, m.sim.Calls(""), "WeChat was asked")
	})
}

func TestATokenThatIsGivenAgainUntilItEndsIsAskedForOnce(t *testing.T) {
	atMadeUp(t, func(t *testing.T, m *mount, p *madeUp) {
		read := func(name string) map[string]any { return m.ok(logical.ReadOperation, "token/"+name, nil).Data }
		first := read("a")
		require.Equal(t, first["access_token"], read("b")["access_token"])
		require.Equal(t, 2, p.calls(), "each name's key is tried once")
		for range 3 {
			before, end := p.granted()
			time.Sleep(time.Until(end.Add(-2 * time.Second)))
			require.LessOrEqual(t, p.calls()-before, 1, "it is not asked for again before it has ended")
			time.Sleep(4 * time.Second)
			require.Equal(t, before+2, p.calls())
			require.Equal(t, fmt.Sprintf("pass-%d", before+2), read("b")["access_token"])
			require.Equal(t, before+2, p.calls(), "no reader waits")
		}
	})
}

func TestATokenOfWhichThereIsNoForcedRefresh(t *testing.T) {
	atMadeUp(t, func(t *testing.T, m *mount, _ *madeUp) {
		token := m.ok(logical.ReadOperation, "token/a", nil).Data
		for _, revoke := range []bool{false, true} {
			status, text := m.refused(logical.UpdateOperation, "rotate/a", map[string]any{"revoke": revoke})
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "there is no forced refresh of such a token")
		}
		require.Equal(t, token["access_token"], m.ok(logical.ReadOperation, "token/a", nil).Data["access_token"])
		status := m.statusOf("a")
		require.Nil(t, status["rotations_remaining"])
		require.Nil(t, status["revocation"])
		require.EqualValues(t, (madeUpLife-time.Minute)/time.Second, token["rotation_period"])
	})
}

func TestAnErrcodeMeansWhatItsPlatformSays(t *testing.T) {
	atMadeUp(t, func(t *testing.T, m *mount, p *madeUp) {
		p.set("none", &problem{Errcode: errcodeMadeUp})
		status, text := m.refused(logical.ReadOperation, "token/a", nil)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, "the key is wrong (errcode 45009); what to do: write another key")
		require.Contains(t, m.logs.String(), "no pass from Made Up")
		require.Equal(t, string(upstream.ClassCredentials), m.statusOf("a")["last_error"].(map[string]any)["class"])
		p.set("none", nil)
		time.Sleep(backoffPerson.Most)
		m.ok(logical.ReadOperation, "token/a", nil)
	})
}

func TestATokenThatIsRejectedInExchangeIsReportedAndAskedForOnce(t *testing.T) {
	atMadeUp(t, func(t *testing.T, m *mount, p *madeUp) {
		read := func() any {
			seen, err := m.keeper.get(t.Context(), m.storage, "a", 1)
			require.NoError(t, err)
			return seen.st.Value
		}
		require.Equal(t, "stamp with pass-1", read())
		p.set("pass-1", nil)
		time.Sleep(time.Minute)
		require.Equal(t, "stamp with pass-2", read())
		require.Equal(t, 2, p.calls())
		require.Equal(t, "pass-2", m.ok(logical.ReadOperation, "token/a", nil).Data["access_token"])
	})
}
