// Package seal encrypts texts that are kept at rest, with AES-256-GCM.
//
// The idea: a blob says which key opens it, and opens only in its place. Each blob carries the ID of its key, so
// that keys can be rotated while old blobs are still read; and it is bound to a context, such as the record and
// the field it belongs to, so that whoever can write to the store cannot swap one for another.
//
// A nonce is 96 random bits. NIST SP 800-38D (section 8.3) allows 2^32 of those for a key: with more, two may be
// equal, and equal nonces give texts away. So a key is for 2^32 blobs at most. The length of a text is not hidden.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// KeySize is the length of a secret in bytes.
const KeySize = 32

// maxID is the longest ID of a key, in bytes.
const maxID = 32

// overhead is what sealing adds to a text, in bytes, beside the ID of the key: its length, nonce and tag.
const overhead = 1 + 12 + 16

// Key is a secret and the ID by which blobs name it. Make one with [ParseKey].
type Key struct {
	id   string
	aead cipher.AEAD // the secret is nowhere else, where it might be printed
}

// What can be wrong with a key. The texts hold nothing of it.
var (
	ErrID     = errors.New("the id of a key is 1 to 32 of a-z, 0-9 and -")
	ErrSecret = errors.New("a key is 32 bytes as base64 or hexadecimal; make one with: openssl rand -base64 32")
)

// ParseKey returns a key. id is 1 to 32 of a-z, 0-9 and -; secret is [KeySize] bytes as base64, in either of its
// alphabets, or as hexadecimal. The error is [ErrID] or [ErrSecret].
func ParseKey(id, secret string) (Key, error) {
	if !validID(id) {
		return Key{}, ErrID
	}
	raw, ok := decodeSecret(secret)
	if !ok {
		return Key{}, ErrSecret
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return Key{}, fmt.Errorf("seal: key %s: %w", id, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return Key{}, fmt.Errorf("seal: key %s: %w", id, err)
	}
	return Key{id: id, aead: aead}, nil
}

// ID is the name that blobs have for the key.
func (k Key) ID() string { return k.id }

func validID(id string) bool {
	return id != "" && len(id) <= maxID && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func decodeSecret(text string) ([]byte, bool) {
	if raw, err := hex.DecodeString(text); err == nil {
		return raw, len(raw) == KeySize
	}
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	raw, err := base64.RawStdEncoding.DecodeString(text)
	return raw, err == nil && len(raw) == KeySize
}

// Ring is the keys of a process: the first one seals, all of them open. A nil Ring has no keys: it opens nothing
// and must not seal. It is safe for concurrent use.
type Ring struct {
	keys []Key
}

// New returns a ring of at least one key. No two may have the same ID.
func New(keys ...Key) (*Ring, error) {
	if len(keys) == 0 {
		return nil, errors.New("seal: a ring needs a key")
	}
	seen := make(map[string]bool, len(keys))
	for _, k := range keys {
		if seen[k.id] {
			return nil, fmt.Errorf("seal: the id %q is there twice", k.id)
		}
		seen[k.id] = true
	}
	return &Ring{keys: keys}, nil
}

// Overhead is how many bytes longer than its text a blob of the first key is.
func (r *Ring) Overhead() int { return overhead + len(r.keys[0].id) }

// Seal appends the blob of a text to dst, which must not overlap it. The blob opens only with the same context.
//
//	blob  length of the key's ID (1 byte), the ID, nonce (12 bytes), ciphertext, tag (16 bytes)
func (r *Ring) Seal(dst, text, context []byte) []byte {
	k := r.keys[0]
	dst = append(append(dst, byte(len(k.id))), k.id...)
	return k.aead.Seal(dst, nil, text, context)
}

// KeyError says that no key of the ring has the ID that a blob names.
type KeyError struct{ ID string }

// Error names the key.
func (e *KeyError) Error() string { return fmt.Sprintf("seal: there is no key %q", e.ID) }

// ErrBroken says that a blob is damaged, belongs elsewhere, or was sealed with another secret under the same ID.
var ErrBroken = errors.New("seal: not a blob of this key in this place")

// Open returns the text of a blob. The error is a *[KeyError] or [ErrBroken].
func (r *Ring) Open(blob, context []byte) ([]byte, error) {
	if len(blob) == 0 || len(blob) < 1+int(blob[0]) {
		return nil, ErrBroken
	}
	id, sealed := string(blob[1:1+blob[0]]), blob[1+blob[0]:]
	if !validID(id) {
		return nil, ErrBroken // whatever stands there is not repeated in errors and logs
	}
	if r != nil {
		for _, k := range r.keys {
			if k.id == id {
				return k.open(sealed, context)
			}
		}
	}
	return nil, &KeyError{ID: id}
}

func (k Key) open(sealed, context []byte) ([]byte, error) {
	text, err := k.aead.Open(nil, nil, sealed, context)
	if err != nil {
		return nil, ErrBroken
	}
	return text, nil
}
