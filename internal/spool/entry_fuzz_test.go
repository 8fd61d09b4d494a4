package spool

import (
	"bytes"
	"errors"
	"testing"
)

// Whatever a file holds, decode returns exactly what was put, or says that it is damaged.
func FuzzDecode(f *testing.F) {
	file := func(payload string) []byte {
		h := encodeHeader([]byte(payload))
		return append(h[:], payload...)
	}
	f.Add(file(""))
	f.Add(file("payload"))
	f.Add([]byte(magic + "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := decode(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%v", err)
			}
			return
		}
		if again := file(string(payload)); !bytes.Equal(again, data) {
			t.Fatalf("%q decodes to %q, whose file is %q", data, payload, again)
		}
	})
}

// Every single flipped bit is noticed.
func TestDecodeNoticesEveryFlippedBit(t *testing.T) {
	payload := []byte("an answer that was paid for")
	h := encodeHeader(payload)
	file := append(h[:], payload...)
	for bit := range len(file) * 8 {
		bad := bytes.Clone(file)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := decode(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d flipped: %v, want ErrDamaged", bit, err)
		}
	}
}

// FuzzParseName: a name is taken for an entry's only if entryName would write it.
func FuzzParseName(f *testing.F) {
	for _, name := range []string{"17.job_1.entry", "017.a.entry", ".entry", "-1.a.entry", "1..entry", "1.a.b.entry"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if e, ok := parseName(name); ok && (e.Name != name || entryName(e.at, e.Key) != name) {
			t.Fatalf("%q is read as %+v", name, e)
		}
	})
}
