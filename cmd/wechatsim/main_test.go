package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

func TestServesUntilInterrupted(t *testing.T) {
	baseURL, interrupt := start(t, "-lifetime", "90s", "-overlap", "1s")
	answer := ask(t, "POST", baseURL+"/cgi-bin/stable_token",
		`{"grant_type":"client_credential","appid":"wxdemo","secret":"`+secret+`"}`)
	if !strings.HasSuffix(answer, `,"expires_in":90}`) {
		t.Errorf("got %d bytes; want a token for 90 s", len(answer))
	}
	interrupt()
}

func TestLogsAUserIn(t *testing.T) {
	for _, bound := range []bool{false, true} {
		baseURL, interrupt := start(t, "-bound="+strconv.FormatBool(bound))
		var minted, session struct{ Code, OpenID, UnionID string }
		decode(t, ask(t, "POST", baseURL+"/_sim/accounts/wxdemo/codes", ""), &minted)
		decode(t, ask(t, "GET", baseURL+"/sns/jscode2session?grant_type=authorization_code&appid=wxdemo&secret="+secret+"&js_code="+minted.Code, ""), &session)
		if session.OpenID != minted.OpenID || session.OpenID == "" || (session.UnionID != "") != bound {
			t.Errorf("bound %t: got %+v of %+v", bound, session, minted)
		}
		interrupt()
	}
}

func TestHoldsAnswersBack(t *testing.T) {
	baseURL, interrupt := start(t, "-latency", "50ms")
	begin := time.Now()
	ask(t, "GET", baseURL+"/cgi-bin/getcallbackip", "")
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("took %s", took)
	}
	interrupt()
}

// start runs the command until interrupt, which checks its end.
func start(t *testing.T, args ...string) (baseURL string, interrupt func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stdout, output := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"-appid", "wxdemo"}, args...), secret, output, io.Discard)
		_ = output.Close()
	}()
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("it printed nothing: ", <-ended)
	}
	return lines.Text(), func() {
		t.Helper()
		cancel()
		if lines.Scan() {
			t.Error("it printed more than its URL")
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// ask returns the body of an answer, which has to be HTTP 200.
func ask(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("HTTP %d, %v", resp.StatusCode, err)
	}
	return string(raw)
}

func decode(t *testing.T, raw string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(raw), v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
}

func TestRefusesToStart(t *testing.T) {
	for _, c := range []struct {
		name, args, secret, want string
	}{
		{"without an appid", "", secret, "-appid"},
		{"without a secret", "-appid wxdemo", "", "WECHATSIM_SECRET"},
		{"on all addresses", "-appid wxdemo -listen :0", secret, "not a loopback address"},
		{"on an address of another network", "-appid wxdemo -listen 192.0.2.1:0", secret, "not a loopback address"},
		{"on something that is no address", "-appid wxdemo -listen nowhere", secret, "nowhere"},
		{"with an argument", "-appid wxdemo serve", secret, `"serve"`},
		{"with an unknown flag", "-secret x", secret, "-secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(c.args), c.secret, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want an error with %s", err, c.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var stderr strings.Builder
	err := run(t.Context(), []string{"-help"}, secret, io.Discard, &stderr)
	if !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"WECHATSIM_SECRET", "-lifetime", "/_sim/faults", "/_sim/accounts/APPID/codes", "jscode2session"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the help lacks %s", want)
		}
	}
	if strings.Contains(stderr.String(), secret) {
		t.Error("the help holds the secret")
	}
}
