package wechat

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxDetail bounds, in bytes, what is kept of a text from outside.
	maxDetail = 256

	// maxCleaned bounds, in bytes, what is cleaned of a text from outside. As much again is
	// searched, so that a secret at the cut is found by what follows.
	maxCleaned = 1 << 10

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

// newScrubber returns a scrubber of these secrets, of some KiB at most: it costs some
// hundred bytes for each of theirs. Empty ones are ignored.
func newScrubber(secrets ...string) *scrubber {
	s := &scrubber{pieces: make(map[string]struct{})}
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		s.add(identity(secret).visible().text)
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
// base64-encoded, and without control, bidirectional and other format characters. Of a
// long text it returns the beginning.
func (s *scrubber) clean(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), 2*maxCleaned)], " ")
	secret := s.find(text)
	var b strings.Builder
	for i := range min(len(text), maxCleaned) {
		switch {
		case !secret[i]:
			b.WriteByte(text[i])
		case i == 0 || !secret[i-1]:
			b.WriteString(redacted)
		}
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(b.String(), ""))
}

// find tells of each byte of the text whether it is of a secret.
func (s *scrubber) find(text string) []bool {
	secret := make([]bool, len(text))
	level := identity(text).visible()
	s.mark(level, secret)
	for range escapeLevels {
		next := level.unescaped().visible()
		if len(next.text) == len(level.text) {
			break // nothing was escaped
		}
		s.mark(next, secret)
		level = next
	}
	return secret
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
		for at := 0; short != ""; {
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

// visible leaves out what cannot be seen: it could part a secret.
func (l layer) visible() layer {
	var text []byte
	var from []int
	for i, r := range l.text {
		if !unicode.IsPrint(r) {
			continue
		}
		_, length := utf8.DecodeRuneInString(l.text[i:]) // 1 for what is no UTF-8
		text, from = append(text, l.text[i:i+length]...), append(from, l.from[i:i+length]...)
	}
	return layer{string(text), append(from, l.from[len(l.text)])}
}

// unescaped undoes one level: %41, \u0041, \x41, and \ before punctuation.
func (l layer) unescaped() layer {
	var text []byte
	var from []int
	for i := 0; i < len(l.text); {
		plain, length := unescape(l.text[i:])
		for range len(plain) {
			from = append(from, l.from[i])
		}
		text = append(text, plain...)
		i += length
	}
	return layer{string(text), append(from, l.from[len(l.text)])}
}

// unescape returns what text begins with, and how long it is written.
func unescape(text string) (plain string, length int) {
	for _, prefix := range []string{"%", `\x`} {
		if b := hexAfter(prefix, text, 1); b != nil {
			return string(b), len(prefix) + 2
		}
	}
	if unit, length := codeUnit(text); length > 0 {
		low, more := codeUnit(text[length:])
		if pair := utf16.DecodeRune(unit, low); pair != unicode.ReplacementChar {
			return string(pair), length + more
		}
		return string(unit), length
	}
	if len(text) > 1 && text[0] == '\\' && strings.IndexByte(`"'\/`, text[1]) >= 0 {
		return text[1:2], 2
	}
	return text[:1], 1
}

// codeUnit returns the unit of UTF-16 that text begins with, written as in JSON, and
// how long it is written: 0 if it is none.
func codeUnit(text string) (unit rune, length int) {
	for _, prefix := range []string{`\u`, `\U`} {
		if b := hexAfter(prefix, text, 2); b != nil {
			return rune(b[0])<<8 | rune(b[1]), len(prefix) + 4
		}
	}
	return 0, 0
}

// hexAfter returns so many bytes that text begins with, in hex after a prefix, nil if
// it does not.
func hexAfter(prefix, text string, size int) []byte {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || len(rest) < 2*size {
		return nil
	}
	b, err := hex.DecodeString(rest[:2*size])
	if err != nil {
		return nil
	}
	return b
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
