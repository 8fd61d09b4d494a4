package tasks

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/google/uuid"
)

// shards is how many parts the records are kept in. All keys of a part share a hash tag, so that a
// script may change a job and its indexes together on Redis Cluster, and the parts spread over the
// nodes. It must never change: it is part of every key.
const shards = 8

// shard says which part a job belongs to.
func shard(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	return int(h.Sum32() % shards)
}

func shardTag(n int) string { return fmt.Sprintf("ferry:{%d}:", n) }

// The keys of a part:
//
//	ferry:{n}:job:<id>       hash   the record
//	ferry:{n}:state:<state>  zset   job IDs by creation time (µs): what List reads
//	ferry:{n}:due            zset   job IDs by when something must happen to them without a worker
//	                                (µs): an open job expires, an ended one is deleted
func jobPrefix(n int) string         { return shardTag(n) + "job:" }
func jobKey(id string) string        { return jobPrefix(shard(id)) + id }
func statePrefix(n int) string       { return shardTag(n) + "state:" }
func stateKey(n int, s State) string { return statePrefix(n) + string(s) }
func dueKey(n int) string            { return shardTag(n) + "due" }
func recordKeys(id string) (keys []string) {
	return []string{jobKey(id), dueKey(shard(id)), statePrefix(shard(id))}
}

// The pub/sub channels. A message is never the only carrier of a fact: readers look at the record too.
const (
	cancelChannel = "ferry:cancel" // the ID of a job whose call should stop
	stateChannel  = "ferry:state:" // + job ID: the state just entered
)

const idPrefix = "job_"

// newID returns an ID that sorts by time (RFC 9562, version 7).
func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		id = uuid.New() // only the ordering of IDs is lost
	}
	return idPrefix + hex.EncodeToString(id[:])
}

// idForKey returns the ID of the job with a client's idempotency key: always the same one, so that the
// record itself is the mapping and two requests cannot race (RFC 9562, version 8).
func idForKey(tenant, key string) string {
	id := uuid.NewHash(sha256.New(), uuid.NameSpaceOID, []byte("ferry\x00"+tenant+"\x00"+key), 8)
	return idPrefix + hex.EncodeToString(id[:])
}

// ValidID reports whether a text has the form of a job ID. Only such texts become part of a Redis key.
func ValidID(id string) bool {
	digits, ok := strings.CutPrefix(id, idPrefix)
	if !ok || len(digits) != 32 {
		return false
	}
	return strings.Trim(digits, "0123456789abcdef") == ""
}
