package openai

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a text that is never shown: every way of printing or encoding it gives "[redacted]". Keep it
// out of unexported fields of structs that may be printed: fmt does not ask those how they want to be shown.
type Secret string

const redacted = "[redacted]"

// String is "[redacted]", or empty for an empty secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format is [Secret.String] for every verb it is asked for: left to itself, fmt shows the text for one that
// does not fit, such as %d.
func (s Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, s.String()) // what becomes of a message is its reader's business
}

// MarshalText is [Secret.String], for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is [Secret.String], for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Reveal is the text itself.
func (s Secret) Reveal() string { return string(s) }
