package wechat

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"unicode"
)

const (
	// maxDetail bounds, in bytes, what is kept of a text from outside.
	maxDetail = 256

	redacted = "[redacted]"

	// pieceLength is the length in bytes of the pieces by which a longer secret is
	// found: whoever echoes a part of it must not be quoted either. It is well below
	// the twelve characters that must not be told, as a % or a \ just before a secret
	// makes an escape of the first characters.
	pieceLength = 8

	// escapeLevels is how often a text may have been escaped, one time within the
	// other, for a secret in it to be found.
	escapeLevels = 3
)

// scrubber takes secrets out of texts that came from outside, should a middlebox
// echo what it was sent.
type scrubber struct {
	whole  []string            // what is shorter than pieceLength, searched as it is
	pieces map[string]struct{} // every piece of pieceLength bytes of what is longer
}

// newScrubber returns a scrubber of these secrets; empty ones are ignored.
func newScrubber(secrets ...string) *scrubber {
	s := &scrubber{pieces: make(map[string]struct{})}
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		s.add(secret)
		digits := hex.EncodeToString([]byte(secret))
		s.add(digits)
		s.add(strings.ToUpper(digits))
		// Within a longer text the encoding depends on where the secret begins.
		for lead := range 3 {
			encoded := base64.StdEncoding.EncodeToString(append(make([]byte, lead), secret...))
			first, last := (lead*8+5)/6, (lead+len(secret))*8/6 // characters that depend on nothing else
			if core := encoded[first:last]; len(core) >= 6 {
				s.add(core)
				s.add(strings.NewReplacer("+", "-", "/", "_").Replace(core))
			}
		}
	}
	return s
}

func (s *scrubber) add(text string) {
	if len(text) < pieceLength {
		s.whole = append(s.whole, text)
		return
	}
	for i := range len(text) - pieceLength + 1 {
		s.pieces[text[i:i+pieceLength]] = struct{}{}
	}
}

// clean returns the text without the secrets, as they are or JSON-, URL-, hex- or
// base64-encoded, and without control, bidirectional and other format characters.
func (s *scrubber) clean(text string) string {
	// First the invisible characters: they could part a secret.
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, " "))

	secret := make([]bool, len(text)) // of each byte of text
	level := identity(text)
	for range escapeLevels {
		s.mark(level, secret)
		next := level.unescaped()
		if len(next.text) == len(level.text) {
			break // nothing was escaped
		}
		level = next
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case !secret[i]:
			b.WriteByte(text[i])
		case i == 0 || !secret[i-1]:
			b.WriteString(redacted)
		}
	}
	return strings.ToValidUTF8(b.String(), "")
}

// scrub is clean, and short.
func (s *scrubber) scrub(text string) string { return truncate(s.clean(text)) }

// mark marks the bytes of the original text that hold a secret.
func (s *scrubber) mark(l layer, secret []bool) {
	found := func(from, to int) {
		for i := l.from[from]; i < l.from[to]; i++ {
			secret[i] = true
		}
	}
	for i := range len(l.text) - pieceLength + 1 {
		if _, ok := s.pieces[l.text[i:i+pieceLength]]; ok {
			found(i, i+pieceLength)
		}
	}
	for _, short := range s.whole {
		for at := 0; ; {
			i := strings.Index(l.text[at:], short)
			if i < 0 {
				break
			}
			found(at+i, at+i+len(short))
			at += i + len(short)
		}
	}
}

// layer is a text with some levels of escaping undone.
type layer struct {
	text string
	from []int // where each byte begins in the original text, and where that ends
}

func identity(text string) layer {
	from := make([]int, len(text)+1)
	for i := range from {
		from[i] = i
	}
	return layer{text, from}
}

// unescaped undoes one level: %41, \u0041, \x41, and \ before punctuation.
func (l layer) unescaped() layer {
	var text []byte
	var from []int
	for i := 0; i < len(l.text); {
		c, length := unescape(l.text[i:])
		text, from = append(text, c), append(from, l.from[i])
		i += length
	}
	return layer{string(text), append(from, l.from[len(l.text)])}
}

// unescape returns the byte that text begins with, and how long it is written.
func unescape(text string) (c byte, length int) {
	for _, form := range []struct {
		prefix string
		digits int
	}{{"%", 2}, {`\u`, 4}, {`\U`, 4}, {`\x`, 2}} {
		rest, ok := strings.CutPrefix(text, form.prefix)
		if !ok || len(rest) < form.digits {
			continue
		}
		digits := rest[:form.digits]
		if form.digits == 4 {
			if !strings.HasPrefix(digits, "00") {
				continue // no secret of ours holds more than bytes
			}
			digits = digits[2:]
		}
		if b, err := hex.DecodeString(digits); err == nil {
			return b[0], len(form.prefix) + form.digits
		}
	}
	if len(text) > 1 && text[0] == '\\' && strings.IndexByte(`"'\/`, text[1]) >= 0 {
		return text[1], 2
	}
	return text[0], 1
}

func truncate(text string) string {
	if len(text) > maxDetail {
		return strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

// loginOf returns what must not be shown of a proxy's URL.
func loginOf(proxy *url.URL) []string {
	if proxy == nil || proxy.User == nil {
		return nil
	}
	password, _ := proxy.User.Password()
	login := proxy.User.Username() + ":" + password
	// The encoding of a short login would not be found by its core.
	return []string{proxy.User.String(), login, base64.StdEncoding.EncodeToString([]byte(login)), password}
}
