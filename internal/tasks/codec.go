package tasks

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/ferry-queue/ferry/internal/seal"
)

// What a job says and is told is kept in Redis with one byte in front that names its form, so that a store may hold
// several and a later version may add one. A sealed text has its form inside: it is compressed first, since what is
// encrypted no longer shrinks.
const (
	packedRaw    = 0
	packedZstd   = 1
	packedSealed = 2
)

// The fields of a record that hold what a job says and is told. They are packed, and sealed where there is a key.
const (
	fieldBody   = "body"
	fieldResult = "result"
	fieldError  = "error"
	fieldHash   = "hash" // of the submission: with it a guess of the prompt can be checked
)

// packFrom is the size in bytes from which compression pays: below, the frame eats what it saves.
const packFrom = 512

// maxUnpacked bounds what a packed body may become, in bytes.
const maxUnpacked = 256 << 20

// codec turns texts into what is stored and back. A sealed text is bound to its job and field, so that whoever can write
// to Redis cannot have one job's answer shown to the client of another. It is safe for concurrent use.
type codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	ring *seal.Ring // nil: nothing is sealed
}

func newCodec(ring *seal.Ring) (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, fmt.Errorf("tasks: zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxUnpacked))
	if err != nil {
		return nil, fmt.Errorf("tasks: zstd: %w", err)
	}
	return &codec{enc: enc, dec: dec, ring: ring}, nil
}

// pack returns the stored form of a body.
func (c *codec) pack(id, field string, body []byte) []byte {
	packed := c.compress(body)
	if c.ring == nil {
		return packed
	}
	return c.seal(id, field, packed)
}

func (c *codec) compress(body []byte) []byte {
	if len(body) >= packFrom {
		if packed := c.enc.EncodeAll(body, append(make([]byte, 0, len(body)/2+64), packedZstd)); len(packed) < len(body) {
			return packed
		}
	}
	return append(append(make([]byte, 0, len(body)+1), packedRaw), body...)
}

func (c *codec) seal(id, field string, packed []byte) []byte {
	sealed := append(make([]byte, 0, 1+len(packed)+c.ring.Overhead()), packedSealed)
	return c.ring.Seal(sealed, packed, place(id, field))
}

// place is what a sealed text is bound to. An ID has no slash.
func place(id, field string) []byte { return []byte(id + "/" + field) }

// errNewerForm says that a text has a form of a later version.
var errNewerForm = errors.New("packed by a newer version of Ferry")

// unpack reads what pack has written, or an earlier version.
func (c *codec) unpack(id, field string, packed []byte) ([]byte, error) {
	if len(packed) > 0 && packed[0] == packedSealed {
		var err error
		if packed, err = c.ring.Open(packed[1:], place(id, field)); err != nil {
			return nil, err
		}
	}
	return c.decompress(packed)
}

func (c *codec) decompress(packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	switch body := packed[1:]; packed[0] {
	case packedRaw:
		return body, nil
	case packedZstd:
		return c.dec.DecodeAll(body, nil)
	default:
		return nil, errNewerForm
	}
}

// packText is pack for a short text that is plain where there is no key. Such a text begins with none of the forms.
func (c *codec) packText(id, field, text string) string {
	if c.ring == nil {
		return text
	}
	return string(c.pack(id, field, []byte(text)))
}

// unpackText reads what packText has written, with a key or without.
func (c *codec) unpackText(id, field, stored string) (string, error) {
	if stored == "" || stored[0] >= ' ' {
		return stored, nil
	}
	text, err := c.unpack(id, field, []byte(stored))
	return string(text), err
}

// packFailure is how a failure stands in a record.
func (c *codec) packFailure(id string, f *Failure) string {
	return c.packText(id, fieldError, encodeFailure(f))
}

func (c *codec) unpackFailure(id, stored string) (*Failure, error) {
	text, err := c.unpackText(id, fieldError, stored)
	if text == "" || err != nil {
		return nil, err
	}
	var f *Failure
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return nil, err
	}
	return f, nil
}
