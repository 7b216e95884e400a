//go:build unix

package main

import (
	"fmt"
	"os"
	"strings"
)

// document is a Markdown file with places for the parts that this program writes.
type document struct {
	file     string
	language language
}

// places are the parts' names, in each document once.
var places = []string{"summary", "tables"}

const endMark = "<!-- to here -->\n"

func beginMark(place string) string {
	return "<!-- make bench writes the " + place + " from here -->\n"
}

// openDocument makes sure, before anything is measured, that there is a place for
// every part. A file named *.zh-CN.md is Chinese.
func openDocument(file string) (*document, error) {
	d := &document{file: file}
	if strings.HasSuffix(file, ".zh-CN.md") {
		d.language = chinese
	}
	_, err := d.with(nil)
	return d, err
}

// replace writes the parts in the place of the former ones.
func (d *document) replace(parts map[string]string) error {
	content, err := d.with(parts)
	if err != nil {
		return err
	}
	return os.WriteFile(d.file, []byte(content), 0o644) //nolint:gosec // for all to read
}

// with returns the document with these parts.
func (d *document) with(parts map[string]string) (string, error) {
	read, err := os.ReadFile(d.file)
	if err != nil {
		return "", err
	}
	content := string(read)
	for _, place := range places {
		begin := beginMark(place)
		before, rest, begins := strings.Cut(content, begin)
		_, after, ends := strings.Cut(rest, endMark)
		if !begins || !ends {
			return "", fmt.Errorf("%s lacks the line %q or, after it, %q", d.file, strings.TrimSpace(begin), strings.TrimSpace(endMark))
		}
		content = before + begin + "\n" + strings.TrimSpace(parts[place]) + "\n\n" + endMark + after
	}
	return content, nil
}
