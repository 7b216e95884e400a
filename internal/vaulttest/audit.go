//go:build unix

package vaulttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/vault/api"
)

// EnableAudit gives the server, and with it its whole cluster, an audit device
// that writes AuditFile.
func (s *Server) EnableAudit(ctx context.Context) error {
	return s.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": s.audit},
	})
}

// DisableAudit takes the audit device away, if there is one, and removes its file.
func (s *Server) DisableAudit(ctx context.Context) error {
	if err := s.Sys().DisableAuditWithContext(ctx, "file"); err != nil {
		return err
	}
	return os.RemoveAll(s.audit)
}

// Hide notes what log and audit file must not hold in the clear. Any goroutine
// may call it.
func (s *Server) Hide(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, value := range values {
		s.hidden[value] = true
	}
}

// Hidden returns everything that was ever hidden. Any goroutine may call it.
func (s *Server) Hidden() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.hidden))
}

// Telling returns the beginning of a hidden value that is long enough to tell that
// it is one: a token that was cut off on its way into a message has leaked all the
// same.
func Telling(hidden string) string { return hidden[:min(len(hidden), 24)] }

// Leaks looks into the server's log and audit file for hidden values, and for the
// beginning of the long ones. It wants to see there as well that a plugin that was
// registered had requests: what is not the right file in the right format could
// hide anything.
func (s *Server) Leaks(hidden []string) error {
	var found []error
	marks := map[string][]string{s.log: {"core: post-unseal setup complete"}, s.audit: nil}
	for _, plugin := range s.plugins {
		marks[s.audit] = append(marks[s.audit], `"mount_type":"`+plugin+`"`)
	}
	for file, marks := range marks {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(marks, func(mark string) bool { return bytes.Contains(content, []byte(mark)) }) {
			found = append(found, fmt.Errorf("%s holds none of %q: is it the file?", filepath.Base(file), marks))
		}
		for _, value := range hidden {
			at := bytes.Index(content, []byte(Telling(value)))
			if at < 0 {
				continue
			}
			line := content[bytes.LastIndexByte(content[:at], '\n')+1:]
			line, _, _ = bytes.Cut(line, []byte("\n"))
			found = append(found, fmt.Errorf("%s holds a secret, a token or a password in the clear: %s", filepath.Base(file), line))
		}
	}
	return errors.Join(found...)
}
