package openai_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/openai"
)

const hidden = "sk-live-0123456789"

// holder is a struct that somebody prints. As the key of a map a secret is out of place: encoding/json takes any
// string for what it is.
type holder struct {
	Key  openai.Secret            `json:"key"  yaml:"key"`
	Ptr  *openai.Secret           `json:"ptr" yaml:"ptr"`
	List []openai.Secret          `json:"list" yaml:"list"`
	Map  map[openai.Secret]string `json:"-" yaml:"-"`
}

func newHolder() holder {
	s := openai.Secret(hidden)
	return holder{Key: s, Ptr: &s, List: []openai.Secret{s}, Map: map[openai.Secret]string{s: "x"}}
}

func TestSecretIsNotPrintedByFmt(t *testing.T) {
	h := newHolder()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%10.20s", "%!"} {
		for _, value := range []any{h.Key, &h.Key, h, &h, h.List, h.Map, errors.Join(fmt.Errorf("key %v", h.Key))} {
			text := fmt.Sprintf(verb, value)
			require.NotContains(t, text, hidden, verb)
			require.NotContains(t, text, fmt.Sprintf("%x", hidden), verb)
		}
	}
	require.Equal(t, "[redacted]", fmt.Sprint(h.Key))
	require.Empty(t, fmt.Sprint(openai.Secret("")), "an empty one has nothing to hide")
	require.Equal(t, hidden, h.Key.Reveal())
}

func TestSecretIsNotPrintedByEncoders(t *testing.T) {
	h := newHolder()
	asJSON, err := json.Marshal(h)
	require.NoError(t, err)
	asYAML, err := yaml.Marshal(h)
	require.NoError(t, err)
	var asLog, asText bytes.Buffer
	slog.New(slog.NewJSONHandler(&asLog, nil)).Info("m", "key", h.Key, "ptr", h.Ptr, "struct", h, "group", slog.GroupValue(slog.Any("k", h.Key)))
	slog.New(slog.NewTextHandler(&asText, nil)).Info("m", "key", h.Key, "ptr", h.Ptr, "struct", h)
	for _, text := range []string{string(asJSON), string(asYAML), asLog.String(), asText.String()} {
		require.NotContains(t, text, hidden)
		require.Contains(t, text, "[redacted]")
	}
}

func TestPrintingAnUpstreamOrItsConfigShowsNoKey(t *testing.T) {
	cfg := openai.Config{Name: "up", BaseURL: "http://127.0.0.1:1/v1", APIKey: hidden}
	u, err := openai.New(cfg, nil, noHooks())
	require.NoError(t, err)
	t.Cleanup(u.Close)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "upstream", u, "config", cfg)
	for _, text := range []string{fmt.Sprintf("%v %+v", u, u), fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg), log.String()} {
		require.NotContains(t, text, hidden)
	}
}
