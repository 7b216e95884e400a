//go:build unix

package vaulttest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// pieceLength is how many characters of a hidden value count as the value: who has so
// many of them has most of it, and no other text has them by chance.
const pieceLength = 12

// Traces finds hidden values in texts: whole and in pieces of twelve characters, as
// they are, and as URLs, JSON, hex and both alphabets of base64 write them. The zero
// value hides nothing. It is for one goroutine at a time.
type Traces struct {
	patterns map[[pieceLength]byte][]pattern // by how they begin
}

type pattern struct{ text, of string }

// Add hides a value, which is at least twelve characters long. what says what it is,
// for the message of who finds it.
func (tr *Traces) Add(what, value string) error {
	if len(value) < pieceLength {
		return fmt.Errorf("%s has only %d characters: any text could hold them", what, len(value))
	}
	for i := range len(value) - pieceLength + 1 {
		piece := value[i : i+pieceLength]
		for _, written := range spellings(piece) {
			tr.add(what, written)
		}
	}
	// In base64 a piece looks otherwise at each of three places of a text.
	for lead := range 3 {
		encoded := base64.StdEncoding.EncodeToString(append(make([]byte, lead), value...))
		core := encoded[(lead*8+5)/6 : (lead+len(value))*8/6] // what depends on nothing else
		for i := range len(core) - pieceLength + 1 {
			piece := core[i : i+pieceLength]
			tr.add(what, piece)
			tr.add(what, strings.NewReplacer("+", "-", "/", "_").Replace(piece))
		}
	}
	return nil
}

// spellings are the ways to write a text, each at least as long as the text.
func spellings(text string) []string {
	every := func(form string) string {
		var b strings.Builder
		for _, c := range []byte(text) {
			fmt.Fprintf(&b, form, c)
		}
		return b.String()
	}
	quoted, _ := json.Marshal(text)          // of a string it never fails
	twice, _ := json.Marshal(string(quoted)) // likewise
	digits := hex.EncodeToString([]byte(text))
	return []string{
		text, url.QueryEscape(text), url.PathEscape(text), url.QueryEscape(url.QueryEscape(text)),
		every("%%%02x"), every("%%%02X"), every(`\u%04x`), every(`\x%02x`),
		string(quoted[1 : len(quoted)-1]), string(twice[3 : len(twice)-3]),
		strings.Trim(fmt.Sprintf("%q", text), `"`), digits, strings.ToUpper(digits),
	}
}

func (tr *Traces) add(what, text string) {
	if tr.patterns == nil {
		tr.patterns = map[[pieceLength]byte][]pattern{}
	}
	begin := [pieceLength]byte([]byte(text)[:pieceLength])
	for _, p := range tr.patterns[begin] {
		if p.text == text {
			return
		}
	}
	tr.patterns[begin] = append(tr.patterns[begin], pattern{text, what})
}

// In returns what of the hidden values is in a text, with the text around it. It
// never returns more than a few.
func (tr *Traces) In(text string) []string {
	const most, around = 5, 120
	var found []string
	for i := 0; i+pieceLength <= len(text) && len(found) < most; i++ {
		for _, p := range tr.patterns[[pieceLength]byte([]byte(text[i:i+pieceLength]))] {
			if strings.HasPrefix(text[i:], p.text) {
				found = append(found, fmt.Sprintf("%s: …%s…", p.of, text[max(0, i-around):min(len(text), i+len(p.text)+around)]))
				i += around
				break
			}
		}
	}
	return found
}

// LogFile is where the server and its plugins log.
func (s *Server) LogFile() string { return s.log }

// ProcessTexts returns what the system shows of the server's process and those of its
// plugins to other processes: their command lines and their environments, by the names
// of the files in /proc.
func (s *Server) ProcessTexts() (map[string]string, error) {
	pids, err := s.Plugins()
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for _, pid := range append(pids, s.PID()) {
		for _, file := range []string{"cmdline", "environ"} {
			path := filepath.Join("/proc", fmt.Sprint(pid), file)
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			texts[path] = string(text)
		}
	}
	return texts, nil
}
