// Package arch_test holds the tree to its design: which package may import which, and why.
//
// The graph is read off the source rather than asked of "go list", so that files for every platform count
// and so that "go test" sees the files it read and reruns after a change to any of them.
package arch_test

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// A layer says what a package may import of ours, tests apart. A package joins the list when it joins the tree.
type layer struct {
	dir  string   // from the module root
	ours []string // empty: a leaf
	why  string
}

func layers() []layer {
	return []layer{
		{"client", nil, "users import it: it must bring nothing of the server along"},
		{"internal/breaker", nil, "a breaker guards any work; it must not know whose"},
		{"internal/httpx", nil, "one resilient call is complete in itself; it notices a refusal without knowing the breaker"},
		{"internal/logtest", nil, "any test may read what a program writes"},
		{"internal/redisclient", nil, "how to reach Redis is asked by every binary and depends on none"},
		{"internal/redisserver", nil, "a child process, of use to any test"},
		{"internal/seal", nil, "what is sealed, and where it is kept, is no business of the cipher"},
		{"internal/spool", nil, "what lies on the disk is bytes; what they mean is their owner's"},
		{"internal/upstreamtest", nil, "an upstream that shared code with its caller would share its mistakes"},
		{"internal/redisserver/redistest", []string{"internal/redisserver"}, "keeps package testing out of ferry dev"},

		{"internal/openai", []string{"internal/httpx"}, "what an upstream says is classified in the words of the call"},
		{"internal/tasks", []string{"internal/httpx", "internal/openai", "internal/seal", "internal/spool"}, "one place knows both a class and what the queue does about it, and where an answer waits for Redis"},
		{"internal/dashboard", []string{"internal/tasks"}, "shows queues; it knows nothing of who may look"},
		{
			"internal/api",
			[]string{"internal/breaker", "internal/dashboard", "internal/openai", "internal/tasks"},
			"accepts, answers, and lets people in to the dashboard; of a breaker it reads and overrides the fleet's verdict, in Redis; it never calls an upstream",
		},
		{
			"internal/worker",
			[]string{"internal/breaker", "internal/httpx", "internal/openai", "internal/spool", "internal/tasks"},
			"joins the parts that call an upstream",
		},
		{
			"internal/config",
			[]string{"internal/breaker", "internal/httpx", "internal/openai", "internal/redisclient", "internal/seal", "internal/tasks"},
			"composes the packages' own settings; cmd/api reads it, so it knows nothing of workers",
		},
		{
			"internal/config/apiconfig",
			[]string{"internal/api", "internal/config", "internal/dashboard"},
			"the rest of the settings, for those who serve the API",
		},
		{
			"internal/config/workerconfig",
			[]string{"internal/config", "internal/httpx", "internal/tasks", "internal/worker"},
			"the rest of the settings, for those who may call an upstream",
		},

		{"cmd/internal/cmdline", []string{"internal/config"}, "two programs take the same flags"},
		{
			"cmd/internal/cmdtest",
			[]string{"cmd/internal/cmdline", "internal/logtest", "internal/redisclient", "internal/redisserver/redistest"},
			"tests of what servers have in common",
		},
		{
			"cmd/api",
			[]string{"cmd/internal/cmdline", "internal/api", "internal/config", "internal/config/apiconfig", "internal/redisclient"},
			"joins the packages that accept jobs",
		},
		{
			"cmd/worker",
			[]string{"cmd/internal/cmdline", "internal/config", "internal/config/workerconfig", "internal/redisclient", "internal/worker"},
			"joins the packages that carry jobs out",
		},
		{
			"cmd/ferry",
			[]string{
				"client", "internal/api", "internal/config", "internal/config/apiconfig", "internal/config/workerconfig", "internal/dashboard", "internal/redisclient",
				"internal/redisserver", "internal/upstreamtest", "internal/worker",
			},
			"ferry dev is the whole system in one process",
		},
	}
}

func TestPackagesImportWhatTheirLayerAllows(t *testing.T) {
	tree := readTree(t)
	allowed := map[string]layer{}
	for _, l := range layers() {
		allowed[l.dir] = l
		if _, ok := tree[l.dir]; !ok {
			t.Errorf("%s is listed in layers but is not in the tree", l.dir)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(tree)) {
		if tree[dir].testOnly() {
			continue
		}
		l, ok := allowed[dir]
		if !ok {
			t.Errorf("%s is not listed in layers: say there what it may import, and why", dir)
			continue
		}
		for _, imported := range tree[dir].ours() {
			if !slices.Contains(l.ours, imported) {
				t.Errorf("%s imports %s, but may import of ours only %v: %s", dir, imported, l.ours, l.why)
			}
		}
	}
}

func TestLibrariesStayWithTheirOwners(t *testing.T) {
	tests := []struct {
		pkg    string   // it and what is below it
		owners []string // directories, and what is below them
		why    string
	}{
		{"github.com/hibiken/asynq", []string{"internal/tasks", "internal/dashboard"}, "another queue should mean another tasks package and nothing else"},
		{"github.com/hibiken/asynqmon", []string{"internal/dashboard"}, "it has no authentication of its own: one door, well guarded"},
		{"github.com/labstack", []string{"internal/api"}, "echo v4 is near its end: what replaces it must touch one package"},
		{"github.com/eapache/go-resiliency", []string{"internal/breaker", "internal/httpx"}, "retry and breaker decisions have one home each"},
		{"github.com/alecthomas/kong", []string{"cmd"}, "packages take settings, not arguments"},
		{"github.com/caarlos0/env", []string{"internal/config"}, "the environment is read in one place"},
		{"github.com/goccy/go-yaml", []string{"internal/config"}, "files are read in one place"},
		{"github.com/alicebob/miniredis", []string{"cmd/ferry"}, "it keeps nothing: for tests, and for ferry dev, which says so"},
		{"testing", []string{"cmd/internal/cmdtest", "internal/redisserver/redistest", "internal/upstreamtest"}, "test helpers stay out of the servers"},
		{module + "/internal/config", []string{"cmd", "internal/config"}, "packages are configured by their own struct, not by a file"},
		{module + "/internal/redisserver", []string{"cmd/ferry", "cmd/internal/cmdtest", "internal/redisserver"}, "in production Redis is somebody else's process"},
		{module + "/internal/logtest", []string{"cmd/internal/cmdtest"}, "it grows without end: for tests"},
		{module + "/internal/upstreamtest", []string{"cmd/ferry"}, "no server may answer with made-up text"},
	}
	tree := readTree(t)
	for _, tt := range tests {
		for _, dir := range slices.Sorted(maps.Keys(tree)) {
			owned := slices.ContainsFunc(tt.owners, func(owner string) bool { return within(dir, owner) })
			if owned || tree[dir].testOnly() {
				continue
			}
			for _, imported := range tree[dir].imports {
				if within(imported, tt.pkg) {
					t.Errorf("%s imports %s, which belongs to %v: %s", dir, imported, tt.owners, tt.why)
				}
			}
		}
	}
}

func TestLeavesImportFewLibraries(t *testing.T) {
	tests := []struct {
		dir  string
		only []string // outside the standard library
		why  string
	}{
		{"client", nil, "whoever imports the client gets no other module"},
		{"internal/httpx", []string{"github.com/eapache/go-resiliency"}, "it could be published as it is"},
		{"internal/breaker", []string{"github.com/eapache/go-resiliency", "github.com/redis/go-redis"}, "it could be published as it is"},
		{"internal/spool", nil, "a disk needs no library"},
		{"internal/redisserver", nil, "it talks to Redis before there is a client"},
		{"internal/seal", nil, "cryptography comes from the standard library"},
		{"internal/upstreamtest", nil, "like net/http/httptest"},
	}
	tree := readTree(t)
	for _, tt := range tests {
		for _, imported := range tree.at(t, tt.dir).imports {
			allowed := slices.ContainsFunc(tt.only, func(lib string) bool { return within(imported, lib) })
			if !allowed && !standard(imported) {
				t.Errorf("%s imports %s, but may import only the standard library and %v: %s", tt.dir, imported, tt.only, tt.why)
			}
		}
	}
}

func TestBinariesDoNotLink(t *testing.T) {
	tests := []struct {
		binary string
		never  []string
		why    string
	}{
		{
			"cmd/api",
			[]string{"internal/worker", "internal/redisserver", "internal/upstreamtest"},
			"the API never dials an upstream; it links httpx for its types only, through openai and tasks",
		},
		{
			"cmd/worker",
			[]string{"internal/api", "internal/dashboard", "internal/redisserver", "internal/upstreamtest", "client"},
			"a worker serves nobody but its probes",
		},
	}
	tree := readTree(t)
	for _, tt := range tests {
		for _, never := range tt.never {
			tree.at(t, tt.binary)
			tree.at(t, never)
			if chain := tree.chain(tt.binary, never); chain != nil {
				t.Errorf("%s must not link %s: %s\n\t%s", tt.binary, never, tt.why, strings.Join(chain, " -> "))
			}
		}
	}
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	for dir, pkg := range readTree(t) {
		if len(pkg.comments) != 1 {
			t.Errorf("%s: package comments in %v, want exactly one file", dir, pkg.comments)
		}
	}
}

// A rule that only one of the two knows is forgotten in the other.
func TestDepguardHoldsTheSameDirections(t *testing.T) {
	rules := readDepguard(t)
	for _, l := range layers() {
		if strings.HasPrefix(l.dir, "cmd/") || l.dir == "internal/redisserver/redistest" {
			continue // they join packages; the tests above are enough
		}
		name := path.Base(l.dir)
		if len(l.ours) == 0 {
			name = "leaves"
		}
		rule := rules[name]
		if glob := "**/" + l.dir + "/*.go"; !slices.Contains(rule.Files, glob) {
			t.Errorf(".golangci.yml: depguard rule %q does not name %s", name, glob)
		}
		want := make([]string, len(l.ours))
		for i, dir := range l.ours {
			want[i] = module + "/" + dir
		}
		if !slices.Equal(rule.Allow, want) {
			t.Errorf(".golangci.yml: depguard rule %q allows %v, layers says %v", name, rule.Allow, want)
		}
	}
}

type depguardRule struct {
	Files []string `yaml:"files"`
	Allow []string `yaml:"allow"`
}

func readDepguard(t *testing.T) map[string]depguardRule {
	t.Helper()
	text, err := fs.ReadFile(os.DirFS(root), ".golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]depguardRule `yaml:"rules"`
				} `yaml:"depguard"`
			} `yaml:"settings"`
		} `yaml:"linters"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatalf("%s: %v", filepath.Join(root, ".golangci.yml"), err)
	}
	return config.Linters.Settings.Depguard.Rules
}
