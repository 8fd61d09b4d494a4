package config_test

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/tasks"
)

const (
	exampleFile = "../../ferry.example.yaml"
	docsFile    = "../../docs/configuration.md"
)

// settings returns every key that the struct tags allow, with its variable. Elements of lists and maps are
// written [] and KIND.
func settings(t reflect.Type, prefix string) map[string]string {
	found := map[string]string{}
	for field := range t.Fields() {
		key := field.Tag.Get("yaml")
		if key == "-" || !field.IsExported() {
			continue
		}
		if key == "" {
			panic(field.Name + " of " + t.String() + " has no yaml tag")
		}
		key, typ := prefix+key, field.Type
		switch typ.Kind() {
		case reflect.Slice:
			key, typ = key+"[]", typ.Elem()
		case reflect.Map:
			key, typ = key+".KIND", typ.Elem()
		default:
		}
		if typ.Kind() == reflect.Struct {
			maps.Copy(found, settings(typ, key+"."))
			continue
		}
		found[key] = field.Tag.Get("env")
	}
	return found
}

// flatten returns the values of a file by key, named as settings names them but for the kinds, which stay.
func flatten(value any, key string, into map[string]string) {
	switch value := value.(type) {
	case map[string]any:
		for name, child := range value {
			flatten(child, strings.TrimPrefix(key+"."+name, "."), into)
		}
	case []any:
		for _, child := range value {
			flatten(child, key+"[]", into)
		}
	default:
		into[key] = fmt.Sprint(value)
	}
}

func example(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	// The keys of encryption have no default, so the example has them in a comment.
	text = []byte(strings.Replace(string(text), "\n  keys: []  # [{id:", "\n  keys: [{id:", 1))
	var file map[string]any
	require.NoError(t, yaml.Unmarshal(text, &file))
	values := map[string]string{}
	flatten(file, "", values)
	return values
}

func TestTheExampleLoads(t *testing.T) {
	cfg, err := config.Load(config.Source{File: exampleFile, Getenv: vars{"OPENAI_API_KEY": "sk-1"}.getenv})
	require.NoError(t, err)
	require.Equal(t, []string{"openai"}, cfg.UpstreamNames())
	silent, err := load(t, "", nil)
	require.NoError(t, err)
	require.Equal(t, silent.RedisURL, cfg.RedisURL)
	require.Equal(t, silent.API.Addr, cfg.API.Addr)
	require.Equal(t, silent.Worker.AdminAddr, cfg.Worker.AdminAddr)
	require.Equal(t, silent.Dashboard, cfg.Dashboard)
	require.Equal(t, silent.Log, cfg.Log)
	served := api.Config{}.WithDefaults()
	require.Equal(t, []any{served.MaxBody, served.MaxWait}, []any{cfg.API.MaxBody, cfg.API.MaxWait})
}

// A key without a line in the example is one that nobody finds.
func TestTheExampleHasEveryKey(t *testing.T) {
	kinds := regexp.MustCompile(`\.policies\.(chat|generate|embeddings)\.`)
	var shown []string
	for key := range example(t) {
		shown = append(shown, kinds.ReplaceAllString(key, ".policies.KIND."))
	}
	slices.Sort(shown)
	known := slices.Sorted(maps.Keys(settings(reflect.TypeFor[config.Config](), "")))
	require.Equal(t, known, slices.Compact(shown))
}

// TestTheDocumentedKeys holds docs/configuration.md to the code: every key, its variable, and the default
// that the example shows, which is checked against the code in turn.
func TestTheDocumentedKeys(t *testing.T) {
	rows := tables(t)
	values := example(t)
	given := []string{ // the example must have some
		"upstreams[].name", "upstreams[].base_url", "upstreams[].api_key_env",
		"encryption.keys[].id", "encryption.keys[].key_env", "encryption.keys[].key_file",
	}
	var documented []string
	for key, variable := range settings(reflect.TypeFor[config.Config](), "") {
		name, ofPolicy := strings.CutPrefix(key, "upstreams[].policies.KIND.")
		row, ok := rows[name]
		require.True(t, ok, "%s has no row in docs/configuration.md", key)
		documented = append(documented, name)
		require.NotEmpty(t, row[len(row)-1], "%s has no meaning", key)
		if ofPolicy {
			for i, kind := range openai.Kinds() {
				shown := "upstreams[].policies." + string(kind) + "." + name
				require.Equal(t, fallback(values, shown, "upstreams[].policies.chat."+name), row[i], shown)
			}
			continue
		}
		require.Equal(t, variable, row[0], "variable of %s", key)
		want := values[key]
		if want == "" || slices.Contains(given, key) {
			want = "none"
		}
		require.Equal(t, want, row[1], "default of %s", key)
	}
	for name := range rows {
		require.Contains(t, documented, name, "docs/configuration.md has a key that is none")
	}
}

// fallback is the value of the first key that has one.
func fallback(values map[string]string, keys ...string) string {
	for _, key := range keys {
		if v, ok := values[key]; ok {
			return v
		}
	}
	return ""
}

// tables returns the rows of the tables whose first column is key: the other cells by key, without backquotes
// around a whole cell.
func tables(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	rows := map[string][]string{}
	inside := false
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i, cell := range cells {
			cells[i] = regexp.MustCompile("^`([^`]*)`$").ReplaceAllString(strings.TrimSpace(cell), "$1")
		}
		switch {
		case len(cells) < 4:
			inside = false
		case cells[0] == "key":
			inside = true
		case inside && !strings.HasPrefix(cells[0], "---"):
			require.NotContains(t, rows, cells[0], "twice")
			rows[cells[0]] = cells[1:]
		}
	}
	require.NotEmpty(t, rows)
	return rows
}

// The variables that are no key's stand in a table of their own.
func TestTheOtherVariablesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	for _, name := range []string{"FERRY_CONFIG", "FERRY_DASHBOARD_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"} {
		require.Contains(t, string(text), "\n| `"+name+"` | ")
	}
}

// A variable does what its key does in a file.
func TestEveryVariableSetsItsKey(t *testing.T) {
	special := map[string]string{
		"redis_url": "redis://other:1", "redis_full_at": "0.5", "jobs.durability": "strict", "jobs.durability_replicas": "0",
		"dashboard.mode": "off", "log.format": "json", "log.level": "warn",
	}
	for key, variable := range settings(reflect.TypeFor[config.Config](), "") {
		if variable == "" {
			continue
		}
		value := special[key]
		switch typ := typeOf(t, key); {
		case typ == reflect.TypeFor[time.Duration]():
			value = "25h"
		case value != "":
		case typ.Kind() != reflect.String:
			value = "77"
		default:
			value = "127.0.0.1:77"
		}
		line := key + ": " + value
		if section, name, nested := strings.Cut(key, "."); nested {
			line = section + ": {" + name + ": " + value + "}"
		}
		fromFile, err := load(t, line, nil)
		require.NoError(t, err, line)
		fromEnv, err := load(t, "", vars{variable: value})
		require.NoError(t, err, variable)
		require.Equal(t, fromFile, fromEnv, variable)
		if key == "jobs.durability_replicas" {
			continue // goes with another key, see TestReplicasGoWithStrict
		}
		unset, err := load(t, "", nil)
		require.NoError(t, err)
		require.NotEqual(t, unset, fromEnv, variable)
	}
}

func TestReplicasGoWithStrict(t *testing.T) {
	_, err := load(t, "jobs: {durability_replicas: 1}", nil)
	require.ErrorContains(t, err, "jobs.durability_replicas: 1 is not 0 or more, and 0 unless durability is strict")
	cfg, err := load(t, "jobs: {durability: strict}", vars{"FERRY_DURABILITY_REPLICAS": "2"})
	require.NoError(t, err)
	require.Equal(t, redisclient.Needs{Strict: true, Replicas: 2}, cfg.RedisNeeds())
	require.Equal(t, tasks.Strict, cfg.TasksConfig().Durability)
	require.Equal(t, 2, cfg.TasksConfig().Replicas)
}

// typeOf is the type of the field with a key.
func typeOf(t *testing.T, key string) reflect.Type {
	t.Helper()
	typ := reflect.TypeFor[config.Config]()
	for name := range strings.SplitSeq(key, ".") {
		field, ok := typ.FieldByNameFunc(func(field string) bool {
			f, _ := typ.FieldByName(field)
			return f.Tag.Get("yaml") == name
		})
		require.True(t, ok, key)
		typ = field.Type
	}
	return typ
}
