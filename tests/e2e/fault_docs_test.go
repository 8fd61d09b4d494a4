package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every row of the table in docs/reliability.md is a test, and every fault that is tested has a row.
func TestEveryFaultHasItsRow(t *testing.T) {
	files, err := filepath.Glob("fault_*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, name := range append(files, moduleRoot+"/docs/reliability.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	names := func(pattern string) []string {
		var all []string
		for _, found := range regexp.MustCompile(pattern).FindAllStringSubmatch(code.String(), -1) {
			all = append(all, found[1])
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	tested, shown := names(`(?m)^func (TestFault\w+)\(`), names(`(?m)^\|.*\| (TestFault\w+) \|`)
	if !slices.Equal(tested, shown) {
		t.Errorf("docs/reliability.md has rows for\n%s\nand the tests are\n%s", strings.Join(shown, "\n"), strings.Join(tested, "\n"))
	}
}
