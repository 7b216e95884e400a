package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
)

// plugin is the name of the program, and of the plugin where it is registered.
const plugin = "vault-plugin-secrets-wechat"

// program is one built plugin.
type program struct {
	name     string
	os, arch string
	data     []byte
	info     *debug.BuildInfo
}

// readProgram reads a program and refuses one that was not built as a release is:
// scripts/build.sh has the flags.
func readProgram(path, version string) (program, error) {
	data, err := os.ReadFile(path) //nolint:gosec // The caller names what to release.
	if err != nil {
		return program{}, err
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return program{}, fmt.Errorf("%s: %w", path, err)
	}
	set := settings(info)
	if set["CGO_ENABLED"] != "0" || set["-trimpath"] != "true" || set["vcs"] != "" {
		return program{}, fmt.Errorf("%s was not built by scripts/build.sh", path)
	}
	p := program{name: filepath.Base(path), os: set["GOOS"], arch: set["GOARCH"], data: data, info: info}
	if folder := filepath.Base(filepath.Dir(path)); folder != p.os+"_"+p.arch {
		return program{}, fmt.Errorf("%s is for %s on %s", path, p.os, p.arch)
	}
	if !bytes.Contains(data, []byte(version)) {
		return program{}, fmt.Errorf("%s was not built as version %s", path, version)
	}
	return p, nil
}

func settings(info *debug.BuildInfo) map[string]string {
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	return set
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
