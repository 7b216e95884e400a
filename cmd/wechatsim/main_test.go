package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"strings"
	"testing"
)

const secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

func TestServesUntilInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	stdout, output := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-appid", "wxdemo", "-lifetime", "90s", "-overlap", "1s"}, secret, output, io.Discard)
		_ = output.Close()
	}()
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("it printed nothing: ", <-ended)
	}
	call := `{"grant_type":"client_credential","appid":"wxdemo","secret":"` + secret + `"}`
	resp, err := http.Post(lines.Text()+"/cgi-bin/stable_token", "application/json", strings.NewReader(call))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(answer), `,"expires_in":90}`) {
		t.Errorf("got %d bytes, %v; want a token for 90 s", len(answer), err)
	}
	interrupt()
	if lines.Scan() {
		t.Error("it printed more than its URL")
	}
	if err := <-ended; err != nil {
		t.Error(err)
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
	for _, want := range []string{"WECHATSIM_SECRET", "-lifetime", "/_sim/faults"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the help lacks %s", want)
		}
	}
	if strings.Contains(stderr.String(), secret) {
		t.Error("the help holds the secret")
	}
}
