package upstream

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"unicode"
)

const (
	// maxDetail bounds, in bytes, what is kept of a text from outside.
	maxDetail = 256

	// maxRID bounds a request ID: what is longer may be a token.
	maxRID = 64

	// pieceLength is how much of a secret gives it away, in bytes.
	pieceLength = 8

	// tokenLength is how long a word is that may be a token, in bytes.
	tokenLength = 16

	withheld = "[withheld]"
)

// quotable returns the beginning of a text from outside if that can be quoted, else
// withheld. A middlebox may echo what it was sent, escaped in a way of its own: so only
// a text without escapes is quoted, and only if it holds no piece of a secret and, but
// for the request ID in it, nothing that looks like a token.
func quotable(text, rid string, secrets []string) string {
	short := truncate(text) // before it is judged: no secret is then so long that it costs
	if holdsSecret(short, secrets) || !isReadable(short) || holdsToken(strings.Replace(short, rid, "", 1)) {
		return withheld
	}
	return short
}

// isReadable reports whether a text is of printable ASCII, Chinese and punctuation, without
// what begins an escape in a URL, in JSON or in HTML.
func isReadable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		if r < unicode.MaxASCII {
			return r < ' ' || strings.ContainsRune(`%\&`, r)
		}
		return !unicode.Is(unicode.Han, r) && !unicode.IsPunct(r)
	})
}

// holdsToken reports whether a long word of the text is no lower-case one. A hyphen ends
// a word: names of hosts are long without it.
func holdsToken(text string) bool {
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_/+", r)
	}) {
		if len(word) >= tokenLength && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz_/") != "" {
			return true
		}
	}
	return false
}

// holdsSecret reports whether a text holds a piece of a secret, plain, in hex or in
// base64.
func holdsSecret(text string, secrets []string) bool {
	for _, secret := range secrets {
		digits := hex.EncodeToString([]byte(secret))
		for _, form := range []string{secret, digits, strings.ToUpper(digits), base64.RawStdEncoding.EncodeToString([]byte(secret))} {
			for i := range len(form) {
				if piece := form[i:min(i+pieceLength, len(form))]; (i == 0 || len(piece) == pieceLength) && strings.Contains(text, piece) {
					return true
				}
			}
		}
	}
	return false
}

func truncate(text string) string {
	if len(text) > maxDetail {
		return strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}
