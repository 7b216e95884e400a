//go:build unix

package main

import (
	"fmt"
	"strings"
)

// language is that of a document.
type language int

const (
	english language = iota
	chinese
)

// text is the same in each language.
type text [2]string

// write writes a text with its figures. In both languages they come in one order.
func (l language) write(b *strings.Builder, t text, figures ...any) {
	fmt.Fprintf(b, t[l], figures...)
}

// head begins a table, whose first columns hold texts and the others figures.
func (l language) head(b *strings.Builder, texts int, titles ...text) {
	cells, rules := make([]string, len(titles)), make([]string, len(titles))
	for i, title := range titles {
		cells[i], rules[i] = title[l], "---:"
		if i < texts {
			rules[i] = "---"
		}
	}
	b.WriteString("\n")
	row(b, cells...)
	row(b, rules...)
}

func row(b *strings.Builder, cells ...string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

// onOff says of an audit device whether there is one.
func (l language) onOff(audit bool) string {
	if audit {
		return text{"on", "开"}[l]
	}
	return text{"off", "关"}[l]
}

// about writes a figure with two digits that count and with separators: 12,000.
func about(figure float64) string {
	digits := fmt.Sprintf("%.0f", figure)
	if len(digits) > 2 {
		// %.1e rounds to two digits.
		var rounded float64
		if _, err := fmt.Sscan(fmt.Sprintf("%.1e", figure), &rounded); err == nil {
			digits = fmt.Sprintf("%.0f", rounded)
		}
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
