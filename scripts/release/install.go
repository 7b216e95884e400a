package main

import (
	"bytes"
	_ "embed"
	"strings"
	"text/template"
)

var (
	//go:embed install.md.tmpl
	installText string
	//go:embed image.md.tmpl
	imageText string

	installTemplate = template.Must(template.New("").Parse(installText))
	imageTemplate   = template.Must(template.New("").Parse(imageText))
)

// instructions is the archive's INSTALL.md: how to check and register this very
// program.
func (r release) instructions(p program) []byte {
	return fill(installTemplate, map[string]string{
		"Plugin":  plugin,
		"Version": r.version,
		"File":    p.name,
		"SHA256":  sha256Hex(p.data),
		"OS":      p.os,
		"Arch":    p.arch,
		"Go":      p.info.GoVersion,
	})
}

// tag is the version as Vault makes an image's tag of it.
func tag(version string) string {
	return strings.TrimPrefix(version, "v")
}

func fill(t *template.Template, data any) []byte {
	var buffer bytes.Buffer
	if err := t.Execute(&buffer, data); err != nil {
		panic(err) // The templates and their data are both ours.
	}
	return buffer.Bytes()
}
