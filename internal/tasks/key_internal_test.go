package tasks

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The shard and the ID of a key are part of what stands in Redis: another value after an upgrade would
// lose every record.
func TestKeysNeverChange(t *testing.T) {
	const id = "job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b"
	require.Equal(t, "ferry:{5}:job:"+id, jobKey(id))
	require.Equal(t, 5, shard(id))
	require.Equal(t, "ferry:{3}:state:queued", stateKey(3, Queued))
	require.Equal(t, "ferry:{3}:due", dueKey(3))
	require.Equal(t, "openai:high", QueueName("openai", High))
	require.Equal(t, "job_", idForKey("", "order-17")[:4])
	require.Equal(t, idForKey("", "order-17"), idForKey("", "order-17"))
	require.Equal(t, "job_9e72", idForKey("", "order-17")[:8])
}

func TestIdempotencyKeysOfTenantsDiffer(t *testing.T) {
	require.NotEqual(t, idForKey("a", "k"), idForKey("b", "k"))
	require.NotEqual(t, idForKey("", "a"), idForKey("", "b"))
}

func TestNewIDs(t *testing.T) {
	last := ""
	for range 1000 {
		id := newID()
		require.True(t, ValidID(id), id)
		require.Greater(t, id, last, "IDs sort by time")
		last = id
	}
	require.True(t, ValidID(idForKey("", "anything")))
}

func TestValidID(t *testing.T) {
	for _, bad := range []string{
		"", "job_", "job_123", "JOB_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b", "job_0190A6b2c3d47e5f8a9b0c1d2e3f4a5b",
		"job_0190a6b2c3d47e5f8a9b0c1d2e3f4a5b0", "job_0190a6b2c3d47e5f8a9b0c1d2e3f4a}b", "job_0190a6b2c3d4 e5f8a9b0c1d2e3f4a5b",
	} {
		require.False(t, ValidID(bad), bad)
	}
}

func TestShardsShareTheLoad(t *testing.T) {
	var count [shards]int
	for range 8000 {
		count[shard(newID())]++
	}
	for part, n := range count {
		require.InDelta(t, 1000, n, 200, "part %d", part)
	}
}

func TestCodec(t *testing.T) {
	c, err := newCodec(nil)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "body")
		if rapid.Bool().Draw(t, "repeats") {
			body = append(body, []byte(strings.Repeat(string(body), 3))...)
		}
		packed := c.pack("job_1", fieldBody, body)
		if len(packed) > len(body)+1 {
			t.Fatalf("%d bytes became %d", len(body), len(packed))
		}
		got, err := c.unpack("job_1", fieldBody, packed)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(body) {
			t.Fatalf("got %q, want %q", got, body)
		}
	})
	_, err = c.unpack("job_1", fieldBody, []byte{9, 1, 2})
	require.ErrorContains(t, err, "newer version")
	_, err = c.unpack("job_1", fieldBody, []byte{packedZstd, 1, 2})
	require.Error(t, err)
	none, err := c.unpack("job_1", fieldBody, nil)
	require.NoError(t, err)
	require.Nil(t, none)
}

func FuzzPosition(f *testing.F) {
	f.Add("abc." + newID())
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePosition(s)
		if err != nil {
			return
		}
		again, err := parsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

func FuzzLedger(f *testing.F) {
	f.Add(`{"n":1,"run":1,"class":"ok"}` + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		attempts, err := decodeLedger(s)
		if err != nil {
			return
		}
		lines, err := encodeLedger(attempts)
		require.NoError(t, err)
		again, err := decodeLedger(lines)
		require.NoError(t, err)
		require.Len(t, again, len(attempts))
	})
}
