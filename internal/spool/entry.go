package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// An entry's file is a header and the payload:
//
//	8 bytes  magic; the last byte is the version of this form
//	8 bytes  length of the payload, big endian
//	4 bytes  CRC-32C of the length and the payload, big endian
const (
	magic      = "ferrysp\x01"
	headerSize = len(magic) + 8 + 4
)

func encodeHeader(payload []byte) [headerSize]byte {
	var h [headerSize]byte
	copy(h[:], magic)
	binary.BigEndian.PutUint64(h[len(magic):], uint64(len(payload)))
	binary.BigEndian.PutUint32(h[headerSize-4:], checksum(h, payload))
	return h
}

// checksum covers the length too: a payload of zeros must not pass with another length.
func checksum(h [headerSize]byte, payload []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(h[len(magic):headerSize-4], table), table, payload)
}

func readEntry(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return decode(f, info.Size())
}

// decode reads a file of a known size. Nothing of the size that a header claims is allocated before the
// file is seen to have it.
func decode(r io.Reader, size int64) ([]byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, short(err)
	}
	if string(h[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it begins with %q", ErrDamaged, h[:len(magic)])
	}
	length := binary.BigEndian.Uint64(h[len(magic):])
	if got := size - int64(headerSize); got < 0 || length != uint64(got) {
		return nil, fmt.Errorf("%w: it has %d bytes of %d", ErrDamaged, got, length)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, short(err)
	}
	if binary.BigEndian.Uint32(h[headerSize-4:]) != checksum(h, payload) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrDamaged)
	}
	return payload, nil
}

// short tells a file that ends too early from a disk that cannot be read.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", ErrDamaged)
	}
	return err
}
