package wechatsim

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Half a million calls take too long to be made: all but the last one are written
// into the account's record.
func TestTheLimitOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := New()
		sim.SetAccount("wx", Account{Secret: "s"})
		sim.account("wx").day = slices.Repeat(window{time.Now()}, 499_999)
		want := func(errcode int, forced bool) {
			t.Helper()
			ans, _ := sim.stableToken(&request{
				method: "POST", GrantType: "client_credential", AppID: "wx", Secret: "s", ForceRefresh: forced,
			})
			granted := ans.fields[0].name == "access_token"
			if ans.errcode != errcode || granted != (errcode == 0) {
				t.Errorf("got errcode %d, a token %t; want errcode %d", ans.errcode, granted, errcode)
			}
		}
		want(0, false)
		want(45009, false)
		want(45009, true)
		time.Sleep(24*time.Hour - time.Millisecond)
		want(45009, false)
		time.Sleep(time.Millisecond)
		want(0, false)
	})
}
