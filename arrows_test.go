package wechat

import (
	"bytes"
	"go/ast"
	"go/importer"
	"go/parser"
	gotoken "go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// vaultsSide are the files in which the engine meets Vault. They use each other, as in
// every plugin: the backend has paths, and the paths are methods of the backend.
func vaultsSide(file string) bool {
	return strings.HasPrefix(file, "path") || slices.Contains([]string{"backend.go", "replication.go"}, file)
}

// TestArrowsRunOneWay holds the package to its layout: below Vault's side no two files
// use each other, not even through others, and none of them uses Vault's side. What
// the files are for is in the package comment, from Vault's side inwards.
func TestArrowsRunOneWay(t *testing.T) {
	uses := usesOfFiles(t)
	for _, circle := range circles(uses) {
		t.Errorf("these files use each other: %s", strings.Join(circle, ", "))
	}
	for file, used := range uses {
		for _, other := range used {
			if !vaultsSide(file) && vaultsSide(other) {
				t.Errorf("%s uses %s", file, other)
			}
		}
	}
	order := readingOrder(t)
	for file, used := range uses {
		if vaultsSide(file) {
			continue
		}
		at := slices.Index(order, file)
		if at < 0 {
			t.Errorf("the package comment does not name %s", file)
			continue
		}
		for _, other := range used {
			if !slices.Contains(order[at+1:], other) && other != file {
				t.Errorf("%s uses %s, which the package comment names before it", file, other)
			}
		}
	}
	arrows := 0
	for _, used := range uses {
		arrows += len(used)
	}
	t.Logf("%d files below Vault's side and on it, %d arrows", len(uses), arrows)
}

// readingOrder returns the files in the order in which the package comment names them.
func readingOrder(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(gotoken.NewFileSet(), "backend.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	require.NoError(t, err)
	return regexp.MustCompile(`[a-z_]+\.go`).FindAllString(file.Doc.Text(), -1)
}

// usesOfFiles tells which files of the package each of its files uses, tests aside.
func usesOfFiles(t *testing.T) map[string][]string {
	t.Helper()
	exports := exportsOfImports(t)
	fset := gotoken.NewFileSet()
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		require.NoError(t, err)
		files = append(files, file)
	}
	lookup := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	pkg, err := conf.Check("wechat", fset, files, info)
	require.NoError(t, err)
	arrows := map[string]map[string]bool{}
	for ident, object := range info.Uses {
		if object.Pkg() != pkg {
			continue
		}
		from, to := fset.Position(ident.Pos()).Filename, fset.Position(object.Pos()).Filename
		if arrows[from] == nil {
			arrows[from] = map[string]bool{}
		}
		if from != to {
			arrows[from][to] = true
		}
	}
	uses := map[string][]string{}
	for from, to := range arrows {
		uses[from] = slices.Sorted(maps.Keys(to))
	}
	return uses
}

// exportsOfImports returns where the compiled imports of the package are, by path.
func exportsOfImports(t *testing.T) map[string]string {
	t.Helper()
	var stderr bytes.Buffer
	list := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".")
	list.Stderr = &stderr
	output, err := list.Output()
	require.NoError(t, err, stderr.String())
	exports := map[string]string{}
	for line := range strings.Lines(string(output)) {
		path, export, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[path] = export
	}
	return exports
}

// circles returns the sets of files below Vault's side that use each other, by Tarjan's
// algorithm.
func circles(uses map[string][]string) [][]string {
	var all [][]string
	index, low, onStack := map[string]int{}, map[string]int{}, map[string]bool{}
	var stack []string
	var visit func(file string)
	visit = func(file string) {
		index[file] = len(index) + 1
		low[file] = index[file]
		stack, onStack[file] = append(stack, file), true
		for _, other := range uses[file] {
			switch {
			case vaultsSide(other):
			case index[other] == 0:
				visit(other)
				low[file] = min(low[file], low[other])
			case onStack[other]:
				low[file] = min(low[file], index[other])
			}
		}
		if low[file] != index[file] {
			return
		}
		at := slices.Index(stack, file)
		if circle := slices.Sorted(slices.Values(stack[at:])); len(circle) > 1 {
			all = append(all, circle)
		}
		for _, done := range stack[at:] {
			onStack[done] = false
		}
		stack = stack[:at]
	}
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		if index[file] == 0 && !vaultsSide(file) {
			visit(file)
		}
	}
	return all
}

func TestACircleIsFound(t *testing.T) {
	require.Equal(t, [][]string{{"b.go", "c.go", "d.go"}}, circles(map[string][]string{
		"a.go": {"b.go"}, "b.go": {"c.go"}, "c.go": {"d.go"}, "d.go": {"b.go", "e.go"}, "e.go": {"path_x.go"}, "path_x.go": {"e.go"},
	}))
	require.Empty(t, circles(map[string][]string{"a.go": {"b.go", "c.go"}, "b.go": {"c.go"}, "c.go": nil}))
}
