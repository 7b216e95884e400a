package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// The parts of a CycloneDX 1.6 document that are used here.
type (
	bom struct {
		Schema       string       `json:"$schema"`
		Format       string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		Serial       string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp  string      `json:"timestamp"`
		Lifecycles []lifecycle `json:"lifecycles"`
		Component  component   `json:"component"`
	}
	lifecycle struct {
		Phase string `json:"phase"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		Hashes     []hash     `json:"hashes,omitempty"`
		PackageURL string     `json:"purl"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

// sbom lists what is in a program by what the linker wrote into it: the modules
// that are compiled in, not all those that go.mod names, and Go itself. Which
// module needs which is not known there; all of them belong to the program.
func (r release) sbom(p program) ([]byte, error) {
	set := settings(p.info)
	main := component{
		Type:       "application",
		Name:       plugin,
		Version:    r.version,
		Hashes:     []hash{{"SHA-256", sha256Hex(p.data)}},
		PackageURL: packageURL(p.info.Main.Path, r.version) + "?goarch=" + p.arch + "&goos=" + p.os,
	}
	for _, key := range []string{"CGO_ENABLED", "GOARCH", "GOOS"} {
		main.Properties = append(main.Properties, property{"cdx:gomod:build:env:" + key, set[key]})
	}
	main.Ref = main.PackageURL

	goVersion := strings.TrimPrefix(p.info.GoVersion, "go")
	parts := []component{{Type: "library", Name: "stdlib", Version: goVersion, PackageURL: packageURL("stdlib", goVersion)}}
	for _, module := range p.info.Deps {
		parts = append(parts, library(module))
	}
	var refs []string
	for i := range parts {
		parts[i].Ref = parts[i].PackageURL
		refs = append(refs, parts[i].Ref)
	}
	slices.SortFunc(parts, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.Sort(refs)

	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(bom{
		Schema:      "http://cyclonedx.org/schema/bom-1.6.schema.json",
		Format:      "CycloneDX",
		SpecVersion: "1.6",
		Serial:      "urn:uuid:" + uuid(r.base(p), p.data),
		Version:     1,
		Metadata: metadata{
			Timestamp:  r.time.Format(time.RFC3339),
			Lifecycles: []lifecycle{{"post-build"}},
			Component:  main,
		},
		Components:   parts,
		Dependencies: []dependency{{main.Ref, refs}},
	})
	return buffer.Bytes(), err
}

// library describes a module. Its sum is the one of go.sum, which is over the
// module's files: it is no hash that one could compare with a downloaded file.
func library(module *debug.Module) component {
	if module.Replace != nil {
		module = module.Replace
	}
	c := component{Type: "library", Name: module.Path, Version: module.Version, PackageURL: packageURL(module.Path, module.Version)}
	if module.Sum != "" {
		c.Properties = []property{{"go.sum", module.Sum}}
	}
	return c
}

// packageURL is a module's name in https://github.com/package-url/purl-spec, by
// which scanners look up vulnerabilities. Names of this type are in lower case.
func packageURL(module, version string) string {
	return "pkg:golang/" + strings.ToLower(module) + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// uuid is the serial number of the document about one program: the same for the
// same program, of the form that RFC 9562 leaves to its maker (version 8).
func uuid(name string, data []byte) string {
	digest := sha256.New()
	fmt.Fprintln(digest, name)
	digest.Write(data)
	b := digest.Sum(nil)[:16]
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
