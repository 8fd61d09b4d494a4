package httpx

import "fmt"

// Class says what the end of an attempt means for the next one.
type Class uint8

// The classes. A job queue maps each to one action; see docs/httpx.md.
const (
	Unclassified Class = iota // nothing was decided; never returned by Client.Do
	OK                        // an answer that can be used
	Permanent                 // the same request would fail the same way: do not repeat
	Transient                 // the upstream or the way to it failed: a repeat may succeed
	Throttled                 // the upstream asks for less traffic: repeat later
	Refused                   // not sent, for a reason on our side (breaker, pool, descriptors): repeat later, no try spent
	Canceled                  // the caller gave up or is shutting down: no verdict on the upstream
)

var classNames = [...]string{"unclassified", "ok", "permanent", "transient", "throttled", "refused", "canceled"}

// String returns the class in lower case, as used in logs, metrics and JSON.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// MarshalText implements [encoding.TextMarshaler].
func (c Class) MarshalText() ([]byte, error) { return marshalName("class", classNames[:], int(c)) }

// UnmarshalText implements [encoding.TextUnmarshaler]. It fails for a name that String never returns.
func (c *Class) UnmarshalText(text []byte) error {
	i, err := unmarshalName("class", classNames[:], string(text))
	*c = Class(i)
	return err
}

// Retryable reports whether a repeat, now or later, may help.
func (c Class) Retryable() bool { return c == Transient || c == Throttled || c == Refused }

// marshalName and unmarshalName serve the small enums of this package.
func marshalName(kind string, names []string, i int) ([]byte, error) {
	if i >= len(names) {
		return nil, fmt.Errorf("httpx: no %s has the number %d", kind, i)
	}
	return []byte(names[i]), nil
}

func unmarshalName(kind string, names []string, name string) (int, error) {
	for i := range names {
		if names[i] == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("httpx: unknown %s %q, want one of %q", kind, name, names)
}
