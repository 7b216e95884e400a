package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// script puts a program that is a shell script into a folder.
func script(t *testing.T, folder, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(folder, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\nset -eu\n"+text), 0o700))
}

// clone is a folder with one script of the repository and aloud.sh, and beside it programs that
// stand for those that take minutes or that a machine may not have.
type clone struct{ folder, programs string }

func newClone(t *testing.T, name string) clone {
	t.Helper()
	c := clone{folder: t.TempDir(), programs: t.TempDir()}
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "scripts"), 0o700))
	for _, name := range []string{name, "aloud.sh"} {
		text, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(c.folder, "scripts", name), text, 0o700))
	}
	return c
}

// run runs a command in one of the clone's folders, and returns what it prints.
func (c clone) run(t *testing.T, folder string, env []string, command ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = filepath.Join(c.folder, folder)
	cmd.Env = append([]string{"PATH=" + c.programs + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + c.folder, "TMPDIR=" + c.folder}, env...)
	printed, err := cmd.CombinedOutput()
	return string(printed), err
}

// newDist is a clone in which scripts/dist.sh builds within a moment: the programs
// are empty, and the release is the sum of nothing.
func newDist(t *testing.T) clone {
	t.Helper()
	c := newClone(t, "dist.sh")
	script(t, filepath.Join(c.folder, "scripts"), "build.sh", `mkdir -p "${2%/*}" && : >"$2"`)
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "scripts", "release"), 0o700))
	script(t, c.programs, "go", `while [ "$1" != -out ]; do shift; done; echo 'e3b0c442  nothing' >"$2/SHA256SUMS"`)
	return c
}

// cosign is a cosign as the parts of it that the release relies on are in 3.0: a
// signature goes into a bundle and nowhere else.
const cosign = `printf '%s\n' "$*" >>"$HOME/cosign-calls"
command=$1 bundle=
shift
while [ $# -gt 1 ]; do
	case $1 in
	--bundle) bundle=$2; shift ;;
	--key) shift ;;
	--output-signature) echo "Flag --output-signature will be ignored" >&2; shift ;;
	--yes | --new-bundle-format) ;;
	*) echo "Error: unknown flag: $1" >&2; exit 1 ;;
	esac
	shift
done
case $command in
sign-blob)
	[ -n "$bundle" ] || { echo 'Error: create bundle file: open : no such file or directory' >&2; exit 1; }
	cksum <"$1" >"$bundle"
	;;
verify-blob) cksum <"$1" | cmp - "$bundle" && echo Verified OK ;;
esac
`

// verifyBlob is the command of the documents that checks cosign's signature.
var verifyBlob = regexp.MustCompile("`(cosign verify-blob [^`]+)`")

func TestWhatCosignSignsTheCommandOfTheDocumentsVerifies(t *testing.T) {
	c := newDist(t)
	script(t, c.programs, "cosign", cosign)
	printed, err := c.run(t, ".", []string{"SIGN_KEY=cosign:awskms:///alias/release", "SOURCE_DATE_EPOCH=1"}, "scripts/dist.sh", version, plugin)
	require.NoError(t, err, printed)
	require.Equal(t, "sign-blob --yes --key awskms:///alias/release --new-bundle-format --bundle dist/SHA256SUMS.sigstore.json dist/SHA256SUMS\n",
		string(read(t, c.folder, "cosign-calls")))

	for _, page := range []string{"release.md", "release.zh-CN.md"} {
		command := verifyBlob.FindSubmatch(read(t, "../../docs", page))
		require.NotNil(t, command, page)
		printed, err := c.run(t, "dist", nil, "sh", "-c", string(command[1]))
		require.NoError(t, err, printed)
		require.Equal(t, "Verified OK\n", printed)
	}
	require.NoError(t, os.WriteFile(filepath.Join(c.folder, "dist", "SHA256SUMS"), []byte("others"), 0o600))
	_, err = c.run(t, "dist", nil, "sh", "-c", string(verifyBlob.FindSubmatch(read(t, "../../docs", "release.md"))[1]))
	require.Error(t, err)
}

func TestAKeyThatNothingSignsWithIsRefusedBeforeAnythingIsBuilt(t *testing.T) {
	c := newDist(t)
	for key, want := range map[string]string{
		"minisign:key": "SIGN_KEY=minisign:key: must be gpg:ID or cosign:REFERENCE.\n",
		"gpg:":         "SIGN_KEY=gpg:: must be gpg:ID or cosign:REFERENCE.\n",
	} {
		printed, err := c.run(t, ".", []string{"SIGN_KEY=" + key, "SOURCE_DATE_EPOCH=1"}, "scripts/dist.sh", version, plugin)
		require.Error(t, err, key)
		require.Equal(t, want, printed)
		require.NoDirExists(t, filepath.Join(c.folder, "dist"))
	}
}
