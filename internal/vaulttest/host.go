//go:build unix

package vaulttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Host is a program whose servers speak Vault's API.
type Host struct {
	Path    string // of the program, absolute
	Name    string // "Vault" or "OpenBao"
	Version string // without a leading v: "1.21.0"
}

// The names that a host's program gives itself.
const (
	vault   = "Vault"
	openBao = "OpenBao"
)

// FindHost returns the host whose program VAULT_BIN names. It then takes all
// variables of the environment away by which a server or a client could be led to
// something else.
func FindHost(ctx context.Context) (Host, error) {
	program := os.Getenv("VAULT_BIN")
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			if err := os.Unsetenv(name); err != nil {
				return Host{}, err
			}
		}
	}
	if program == "" {
		return Host{}, errors.New("VAULT_BIN is not set: it must be the path of a Vault program; make sets it")
	}
	path, err := filepath.Abs(program)
	if err != nil {
		return Host{}, err
	}
	printed, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return Host{}, fmt.Errorf("VAULT_BIN must be the path of a Vault program: %s version: %w", path, err)
	}
	host, err := parseVersion(string(printed))
	if err != nil {
		return Host{}, fmt.Errorf("VAULT_BIN must be the path of a Vault program: %s version: %w", path, err)
	}
	host.Path = path
	return host, nil
}

// versionLine is what hosts print as their version:
//
//	Vault v1.21.0 ('…'), built 2025-10-22T02:33:18Z
//	OpenBao v2.6.0 (…), built 2026-05-04T03:02:01Z
var versionLine = regexp.MustCompile(`^(` + vault + `|` + openBao + `) v(\d+\.\d+\.\d+[^\s,]*)`)

func parseVersion(printed string) (Host, error) {
	m := versionLine.FindStringSubmatch(printed)
	if m == nil {
		return Host{}, fmt.Errorf("%q is the version of neither %s nor %s", strings.TrimSpace(printed), vault, openBao)
	}
	return Host{Name: m[1], Version: m[2]}, nil
}

// String is the host's name and version: "Vault 1.21.0".
func (h Host) String() string { return h.Name + " " + h.Version }

// IsVault tells whether the host is Vault, and at least of this version.
func (h Host) IsVault(major, minor int) bool {
	if h.Name != vault {
		return false
	}
	parts := strings.Split(h.Version, ".") // parseVersion has seen to it that these are three
	hasMajor, _ := strconv.Atoi(parts[0])
	hasMinor, _ := strconv.Atoi(parts[1])
	return hasMajor > major || hasMajor == major && hasMinor >= minor
}

// settings are those of a server's configuration that only this host knows.
func (h Host) settings() map[string]any {
	if h.Name != openBao {
		return nil
	}
	// OpenBao takes audit devices from its configuration, and from its API only if
	// that allows it. The API is what lets a test switch them on and off.
	return map[string]any{"unsafe_allow_api_audit_creation": true}
}
