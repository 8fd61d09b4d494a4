package upstreamtest

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"
)

const (
	defaultDimensions = 1536
	maxDimensions     = 4096
	weightsPerWord    = 8
)

type embedding struct {
	Object    string `json:"object"`
	Index     int    `json:"index"`
	Embedding any    `json:"embedding"` // []float32, or base64 of little-endian float32
}

// embed answers with one vector per input.
func (x *exchange) embed() {
	dimensions := defaultDimensions
	if x.req.Dimensions != nil {
		dimensions = *x.req.Dimensions
	}
	all := list[embedding]{Object: "list", Model: x.req.Model, Usage: &usage{}}
	for i, text := range x.req.texts {
		all.Usage.PromptTokens += len(split(text))
		e := embedding{Object: "embedding", Index: i}
		if v := vector(text, dimensions); x.req.EncodingFormat == "base64" {
			e.Embedding = encodeVector(v)
		} else {
			e.Embedding = v
		}
		all.Data = append(all.Data, e)
	}
	all.Usage.TotalTokens = all.Usage.PromptTokens
	if !x.sleep(x.pace(all.Usage.TotalTokens)) {
		return
	}
	x.writeJSON(all)
}

// vector is a bag of hashed words of length 1: texts that share words are near
// each other, so that a search over simulated vectors finds something.
func vector(text string, dimensions int) []float32 {
	v := make([]float32, dimensions)
	for _, word := range append(strings.Fields(strings.ToLower(text)), "") { // never all zero
		h := fnv.New64a()
		_, _ = h.Write([]byte(word)) // a hash never fails
		rnd := rand.New(rand.NewPCG(h.Sum64(), 0))
		for range weightsPerWord {
			v[rnd.IntN(dimensions)] += rnd.Float32() - 0.5
		}
	}
	var sum float64
	for _, f := range v {
		sum += float64(f) * float64(f)
	}
	for i := range v {
		v[i] = float32(float64(v[i]) / math.Sqrt(sum))
	}
	return v
}

func encodeVector(v []float32) string {
	data := make([]byte, 0, 4*len(v))
	for _, f := range v {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(f))
	}
	return base64.StdEncoding.EncodeToString(data)
}
