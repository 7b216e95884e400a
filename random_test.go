package wechat

import (
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEngineAndSimulatorDrawAllRandomnessFromCryptoRand(t *testing.T) {
	for _, pattern := range []string{"*.go", "internal/wechatsim/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(gotoken.NewFileSet(), file, nil, parser.ImportsOnly)
			require.NoError(t, err)
			for _, imported := range parsed.Imports {
				path := strings.Trim(imported.Path.Value, `"`)
				require.False(t, strings.HasPrefix(path, "math/rand"), "%s draws what no test can seed", file)
				if path == "crypto/rand" && pattern == "*.go" {
					require.Equal(t, "random.go", file)
				}
			}
		}
	}
}
