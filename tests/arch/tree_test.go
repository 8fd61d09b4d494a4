package arch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/ferry-queue/ferry"
	root   = "../.."
)

// A tree is every package of the module, by its directory from the module root.
type tree map[string]*pkg

// A pkg is what the files of one directory say of themselves.
type pkg struct {
	files    int      // that are not tests
	imports  []string // of those files, sorted
	comments []string // files with a package comment
}

func (p *pkg) testOnly() bool { return p.files == 0 }

// ours returns the directories of our own packages that p imports.
func (p *pkg) ours() []string {
	var dirs []string
	for _, imported := range p.imports {
		if dir, ok := strings.CutPrefix(imported, module+"/"); ok {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// at returns the package of a directory that a rule names. Without it the rule would pass by looking at nothing.
func (t tree) at(tb testing.TB, dir string) *pkg {
	tb.Helper()
	if t[dir] == nil {
		tb.Fatalf("a rule names %s, which is not in the tree", dir)
	}
	return t[dir]
}

// chain returns a shortest way by imports from one package to another, both included; nil when there is none.
func (t tree) chain(from, to string) []string {
	seen := map[string]bool{from: true}
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		way := queue[0]
		last := way[len(way)-1]
		if last == to {
			return way
		}
		if t[last] == nil { // imported but not there: the compiler says so better
			continue
		}
		for _, next := range t[last].ours() {
			if !seen[next] {
				seen[next] = true
				queue = append(queue, append(slices.Clone(way), next))
			}
		}
	}
	return nil
}

// readTree parses the imports of every Go file of the module. Nested modules answer for themselves.
func readTree(t *testing.T) tree {
	t.Helper()
	packages := tree{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != root && skipped(name):
			return fs.SkipDir
		case entry.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		return packages.add(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		slices.Sort(p.imports)
		p.imports = slices.Compact(p.imports)
	}
	return packages
}

// skipped reports whether the go command would leave the directory out of "./...".
func skipped(name string) bool {
	base := filepath.Base(name)
	if base[0] == '.' || base[0] == '_' || base == "testdata" || base == "node_modules" {
		return true
	}
	_, err := os.Stat(filepath.Join(name, "go.mod"))
	return err == nil
}

func (t tree) add(name string) error {
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return err
	}
	dir, err := filepath.Rel(root, filepath.Dir(name))
	if err != nil {
		return err
	}
	dir = filepath.ToSlash(dir)
	if t[dir] == nil {
		t[dir] = &pkg{}
	}
	t[dir].addFile(filepath.Base(name), file)
	return nil
}

func (p *pkg) addFile(name string, file *ast.File) {
	if file.Doc != nil {
		p.comments = append(p.comments, name)
	}
	if strings.HasSuffix(name, "_test.go") {
		return
	}
	p.files++
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic(err) // the parser accepts string literals only
		}
		p.imports = append(p.imports, imported)
	}
}

// within reports whether name is prefix or lies below it.
func within(name, prefix string) bool {
	return name == prefix || strings.HasPrefix(name, prefix+"/")
}

// standard reports whether an import path belongs to the standard library: those have no dot in the first element.
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}
