package deploy_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/tasks"
)

// environmentNames returns what the code reads from the environment: the env tags of the settings, and the few names
// that it asks for one by one.
func environmentNames(t *testing.T) []string {
	t.Helper()
	var names []string
	eachNode(t, "internal/config", func(node ast.Node) {
		switch node := node.(type) {
		case *ast.Field:
			name, _, _ := strings.Cut(tagOf(t, node).Get("env"), ",")
			names = append(names, name)
		case *ast.CallExpr:
			if called, ok := node.Fun.(*ast.Ident); ok && called.Name == "getenv" {
				names = append(names, literals(t, node.Args)...)
			}
		}
	})
	require.NotEmpty(t, names)
	return names
}

// commandFlags returns the flags that a command of cmd/ferry takes, read off the struct kong reads them off.
func commandFlags(t *testing.T, structName string) []string {
	t.Helper()
	var flags []string
	eachNode(t, "cmd/ferry", func(node ast.Node) {
		spec, ok := node.(*ast.TypeSpec)
		if !ok || spec.Name.Name != structName {
			return
		}
		fields, ok := spec.Type.(*ast.StructType)
		require.True(t, ok, structName)
		for _, field := range fields.Fields.List {
			for _, name := range field.Names {
				flags = append(flags, "--"+flagName(name.Name, tagOf(t, field).Get("name")))
			}
		}
	})
	require.NotEmpty(t, flags, "cmd/ferry has no struct %s", structName)
	return flags
}

// flagName is kong's name for a field: RedisURL is --redis-url.
func flagName(field, tag string) string {
	if tag != "" {
		return tag
	}
	return strings.ToLower(regexp.MustCompile(`([a-z0-9])([A-Z])`).ReplaceAllString(field, "$1-$2"))
}

func tagOf(t *testing.T, field *ast.Field) reflect.StructTag {
	t.Helper()
	if field.Tag == nil {
		return ""
	}
	tag, err := strconv.Unquote(field.Tag.Value)
	require.NoError(t, err)
	return reflect.StructTag(tag)
}

func literals(t *testing.T, expressions []ast.Expr) []string {
	t.Helper()
	var texts []string
	for _, expression := range expressions {
		if literal, ok := expression.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			text, err := strconv.Unquote(literal.Value)
			require.NoError(t, err)
			texts = append(texts, text)
		}
	}
	return texts
}

// eachNode visits the syntax of every Go file below a directory, tests apart.
func eachNode(t *testing.T, dir string, visit func(ast.Node)) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, dir), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for node := range ast.Preorder(file) {
			visit(node)
		}
		return nil
	})
	require.NoError(t, err)
}

// metricLabels returns the labels of every metric that the code registers, by metric.
func metricLabels(t *testing.T) map[string][]string {
	t.Helper()
	labels := collectedLabels(t)
	eachNode(t, "internal", func(node ast.Node) {
		call, ok := node.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return
		}
		options, ok := call.Args[0].(*ast.CompositeLit)
		if !ok {
			return
		}
		name := metricName(t, options)
		if name == "" {
			return
		}
		labels[name] = nil
		if list, ok := call.Args[len(call.Args)-1].(*ast.CompositeLit); ok && list != options {
			labels[name] = literals(t, list.Elts)
		}
	})
	return labels
}

// metricName returns the Name in a literal such as prometheus.CounterOpts{Name: "ferry_jobs_total"}; empty for others.
func metricName(t *testing.T, options *ast.CompositeLit) string {
	t.Helper()
	kind, ok := options.Type.(*ast.SelectorExpr)
	if !ok || !strings.HasSuffix(kind.Sel.Name, "Opts") {
		return ""
	}
	for _, element := range options.Elts {
		field, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		if key, ok := field.Key.(*ast.Ident); ok && key.Name == "Name" {
			return strings.Join(literals(t, []ast.Expr{field.Value}), "")
		}
	}
	return ""
}

// collectedLabels asks the collector of asynq's metrics, which puts its names together while it runs. It does not dial.
func collectedLabels(t *testing.T) map[string][]string {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	descriptions := make(chan *prometheus.Desc)
	go func() {
		tasks.NewCollector(rdb, slog.New(slog.DiscardHandler)).Describe(descriptions)
		close(descriptions)
	}()
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	labels := map[string][]string{}
	for description := range descriptions { // its text is the only place that shows name and labels
		parts := form.FindStringSubmatch(description.String())
		require.Len(t, parts, 3, description.String())
		labels[parts[1]] = strings.Split(parts[2], ",")
	}
	return labels
}
