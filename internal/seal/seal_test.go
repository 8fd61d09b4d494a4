package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/seal"
)

// secretOf is a secret of one byte over and over, as base64.
func secretOf(b byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, seal.KeySize))
}

func key(t testing.TB, id string, b byte) seal.Key {
	t.Helper()
	k, err := seal.ParseKey(id, secretOf(b))
	require.NoError(t, err)
	return k
}

func ring(t testing.TB, keys ...seal.Key) *seal.Ring {
	t.Helper()
	r, err := seal.New(keys...)
	require.NoError(t, err)
	return r
}

func TestABlobOpensInItsPlaceOnly(t *testing.T) {
	r := ring(t, key(t, "k1", 1))
	for _, text := range []string{"", "x", strings.Repeat("long ", 10_000)} {
		blob := r.Seal(nil, []byte(text), []byte("job_1/body"))
		require.Len(t, blob, len(text)+r.Overhead())
		got, err := r.Open(blob, []byte("job_1/body"))
		require.NoError(t, err)
		require.Equal(t, text, string(got))
		for _, elsewhere := range []string{"job_2/body", "job_1/result", ""} {
			_, err = r.Open(blob, []byte(elsewhere))
			require.ErrorIs(t, err, seal.ErrBroken, "swapped to %q", elsewhere)
		}
	}
}

func TestSealAppends(t *testing.T) {
	r := ring(t, key(t, "k1", 1))
	out := r.Seal([]byte("before"), []byte("text"), nil)
	require.Equal(t, "before", string(out[:6]))
	got, err := r.Open(out[6:], nil)
	require.NoError(t, err)
	require.Equal(t, "text", string(got))
}

func TestEqualTextsHaveOtherBlobs(t *testing.T) {
	r := ring(t, key(t, "k1", 1))
	require.NotEqual(t, r.Seal(nil, []byte("text"), nil), r.Seal(nil, []byte("text"), nil))
}

func TestKeysAreRotated(t *testing.T) {
	k1, k2 := key(t, "k1", 1), key(t, "k2", 2)
	old := ring(t, k1).Seal(nil, []byte("old"), nil)
	both := ring(t, k2, k1)
	got, err := both.Open(old, nil)
	require.NoError(t, err)
	require.Equal(t, "old", string(got))

	blob := both.Seal(nil, []byte("new"), nil)
	_, err = ring(t, k2).Open(blob, nil)
	require.NoError(t, err, "the first key seals")
	_, err = ring(t, k2).Open(old, nil)
	unknown, ok := errors.AsType[*seal.KeyError](err)
	require.True(t, ok)
	require.Equal(t, "k1", unknown.ID)
	require.ErrorContains(t, err, `"k1"`)

	var none *seal.Ring
	_, err = none.Open(old, nil)
	require.ErrorAs(t, err, &unknown, "a ring without keys")
	_, err = ring(t, key(t, "k1", 3)).Open(old, nil)
	require.ErrorIs(t, err, seal.ErrBroken, "another secret under the same ID")
}

func TestADamagedBlobIsRefused(t *testing.T) {
	r := ring(t, key(t, "k1", 1))
	blob := r.Seal(nil, []byte("text"), nil)
	for i := range blob {
		damaged := bytes.Clone(blob)
		damaged[i] ^= 0x80
		_, err := r.Open(damaged, nil)
		require.Error(t, err, "byte %d", i)
		_, err = r.Open(blob[:i], nil)
		require.ErrorIs(t, err, seal.ErrBroken, "cut to %d", i)
	}
}

func TestSecretsAreBase64OrHex(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb, 0xff}, seal.KeySize/2)
	blob := func(secret string) []byte {
		k, err := seal.ParseKey("k", secret)
		require.NoError(t, err, secret)
		return ring(t, k).Seal(nil, []byte("text"), nil)
	}
	first, err := seal.ParseKey("k", hex.EncodeToString(raw))
	require.NoError(t, err)
	for _, secret := range []string{
		hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
		base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw),
		base64.URLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
	} {
		_, err := ring(t, first).Open(blob(secret), nil)
		require.NoError(t, err, secret)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	tests := []struct {
		name, id, secret string
		want             error
	}{
		{"no id", "", secretOf(1), seal.ErrID},
		{"a long id", strings.Repeat("k", 33), secretOf(1), seal.ErrID},
		{"an id with other characters", "K 1", secretOf(1), seal.ErrID},
		{"no secret", "k1", "", seal.ErrSecret},
		{"a password", "k1", "hunter2hunter2", seal.ErrSecret},
		{"16 bytes", "k1", base64.StdEncoding.EncodeToString([]byte("hunter2hunter2hu")), seal.ErrSecret},
		{"33 bytes", "k1", hex.EncodeToString(bytes.Repeat([]byte("h"), 33)), seal.ErrSecret},
	}
	for _, tt := range tests {
		_, err := seal.ParseKey(tt.id, tt.secret)
		require.ErrorIs(t, err, tt.want, tt.name)
	}
	_, err := seal.New()
	require.Error(t, err)
	_, err = seal.New(key(t, "k1", 1), key(t, "k1", 2))
	require.ErrorContains(t, err, `"k1" is there twice`)
}

func TestAKeyIsNotPrinted(t *testing.T) {
	const letter = 'S' // a secret of S's would show as text, as numbers or as hexadecimal
	k := key(t, "k1", letter)
	r := ring(t, k)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, value := range []any{k, &k, r, *r, struct{ Ring *seal.Ring }{r}, []seal.Key{k}} {
			text := fmt.Sprintf(verb, value)
			for _, secret := range []string{"SSSS", "83 83 83", "83, 83", "53535353", "0x53, 0x53"} {
				require.NotContains(t, text, secret, verb)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	k, err := seal.ParseKey("k1", secretOf(1))
	require.NoError(f, err)
	r, err := seal.New(k)
	require.NoError(f, err)
	blob := r.Seal(nil, []byte("text"), []byte("place"))
	f.Add(blob)
	f.Add(blob[:10])
	f.Add([]byte("\x02k2rest"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := r.Open(b, []byte("place"))
		if err == nil {
			require.Equal(t, "text", string(text), "nobody makes another blob without the key")
			return
		}
		if unknown, ok := errors.AsType[*seal.KeyError](err); ok {
			require.Regexp(t, `^[a-z0-9-]{1,32}$`, unknown.ID)
			return
		}
		require.ErrorIs(t, err, seal.ErrBroken)
	})
}
