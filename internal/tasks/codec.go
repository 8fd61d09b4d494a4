package tasks

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Bodies are kept in Redis with one byte in front that says how they are packed, so that a later
// version may add a form (encryption) and still read the old ones.
const (
	packedRaw  = 0
	packedZstd = 1
)

// packFrom is the size in bytes from which compression pays: below, the frame eats what it saves.
const packFrom = 512

// maxUnpacked bounds what a packed body may become, in bytes.
const maxUnpacked = 256 << 20

// codec packs request and result bodies. It is safe for concurrent use.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, fmt.Errorf("tasks: zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxUnpacked))
	if err != nil {
		return nil, fmt.Errorf("tasks: zstd: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

func (c *codec) pack(body []byte) []byte {
	if len(body) >= packFrom {
		if packed := c.enc.EncodeAll(body, append(make([]byte, 0, len(body)/2+64), packedZstd)); len(packed) < len(body) {
			return packed
		}
	}
	return append(append(make([]byte, 0, len(body)+1), packedRaw), body...)
}

func (c *codec) unpack(packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	switch body := packed[1:]; packed[0] {
	case packedRaw:
		return body, nil
	case packedZstd:
		out, err := c.dec.DecodeAll(body, nil)
		if err != nil {
			return nil, fmt.Errorf("tasks: stored body: %w", err)
		}
		return out, nil
	default:
		return nil, errors.New("tasks: stored body: packed by a newer version of Ferry")
	}
}
