//go:build unix

package vaulttest

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersionOfAHost(t *testing.T) {
	for printed, want := range map[string]string{
		"Vault v1.21.0, built 2025-10-22T02:33:18Z\n":                   "Vault 1.21.0",
		"Vault v1.16.3 ('7bc19e8'), built 2024-05-29T14:27:27Z (cgo)\n": "Vault 1.16.3",
		"Vault v1.22.0-rc1 ('7bc19e8'), built 2026-01-02T03:04:05Z\n":   "Vault 1.22.0-rc1",
		"OpenBao v2.6.0 ('7bc19e8'), built 2026-05-04T03:02:01Z\n":      "OpenBao 2.6.0",
		"Consul v1.21.0\n": "",
		"Vault v1\n":       "",
		"":                 "",
	} {
		host, err := parseVersion(printed)
		if got := strings.TrimSpace(host.String()); got != want || (err == nil) == (want == "") {
			t.Errorf("%q is the version of %q, %v; want %q", printed, got, err, want)
		}
	}
}

func TestIsVault(t *testing.T) {
	for _, test := range []struct {
		host         Host
		major, minor int
		want         bool
	}{
		{Host{Name: vault, Version: "1.21.0"}, 1, 21, true},
		{Host{Name: vault, Version: "1.21.0"}, 1, 9, true},
		{Host{Name: vault, Version: "1.21.0"}, 1, 22, false},
		{Host{Name: vault, Version: "2.0.0-rc1"}, 1, 22, true},
		{Host{Name: openBao, Version: "2.6.0"}, 1, 16, false},
	} {
		if got := test.host.IsVault(test.major, test.minor); got != test.want {
			t.Errorf("%s is at least Vault %d.%d: %t, want %t", test.host, test.major, test.minor, got, test.want)
		}
	}
}

func TestFindHostTakesTheEnvironmentAway(t *testing.T) {
	program := filepath.Join(t.TempDir(), "bao")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho OpenBao v2.6.0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_BIN", program)
	t.Setenv("VAULT_ADDR", "https://vault.example.com")
	t.Setenv("BAO_TOKEN", "another's")
	host, err := FindHost(t.Context())
	if err != nil || host.Path != program || host.String() != "OpenBao 2.6.0" {
		t.Errorf("the host is %+v, %v", host, err)
	}
	for _, name := range []string{"VAULT_BIN", "VAULT_ADDR", "BAO_TOKEN"} {
		if value, set := os.LookupEnv(name); set {
			t.Errorf("%s is still %q", name, value)
		}
	}
	if _, err := FindHost(t.Context()); err == nil {
		t.Error("a host is found without VAULT_BIN")
	}
}

func TestLeaksAreFound(t *testing.T) {
	token := strings.Repeat("0123456789", 10)
	const unsealed, mounted = "core: post-unseal setup complete\n", `{"mount_type":"engine"}` + "\n"
	for _, test := range []struct {
		what, log, audit string
		want             string // in the error; empty if there is to be none
	}{
		{"nothing", unsealed, mounted, ""},
		{"a whole token in the log", unsealed + "it is " + token + " now\n", mounted, "server.log holds a secret, a token or a password in the clear: it is " + token},
		{"the beginning of a token in the audit file", unsealed, mounted + token[:24], "audit.log holds a secret"},
		{"too little of a token to tell", unsealed + token[:23], mounted, ""},
		{"a log of something else", "", mounted, "is it the file?"},
		{"an audit file without the plugin", unsealed, `{"mount_type":"kv"}`, "is it the file?"},
	} {
		t.Run(test.what, func(t *testing.T) {
			dir := t.TempDir()
			s := &Server{
				log: filepath.Join(dir, "server.log"), audit: filepath.Join(dir, "audit.log"),
				plugins: []string{"other", "engine"}, hidden: map[string]bool{},
			}
			for file, content := range map[string]string{s.log: test.log, s.audit: test.audit} {
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s.Hide(token, "short")
			err := s.Leaks(s.Hidden())
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want %q", err, test.want)
			}
		})
	}
}

func TestTracesAreFoundHoweverTheyAreWritten(t *testing.T) {
	const value = `0f1e2d3c+/"\&<>4b5a6978`
	var traces Traces
	if err := traces.Add("the secret", value); err != nil {
		t.Fatal(err)
	}
	if err := traces.Add("too short", "short"); err == nil {
		t.Error("any text holds five characters")
	}
	texts := []string{value[3:15], base64.StdEncoding.EncodeToString([]byte(`{"a":"` + value)), base64.RawURLEncoding.EncodeToString([]byte("x" + value))}
	for _, from := range []int{0, 5, len(value) - pieceLength} {
		texts = append(texts, spellings(value[from:from+pieceLength])...)
	}
	for _, text := range texts {
		if len(traces.In("before "+text+" after")) == 0 {
			t.Errorf("%q is not found", text)
		}
	}
	for _, text := range []string{"", value[:pieceLength-1], strings.Repeat("nothing to be seen here ", 100)} {
		if found := traces.In(text); found != nil {
			t.Errorf("in %q: %v", text, found)
		}
	}
}
