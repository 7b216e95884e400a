package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const version = "v9.8.7"

var at = time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)

// work is a folder that is removed after the tests.
var work string

func TestMain(m *testing.M) {
	var err error
	if work, err = os.MkdirTemp("", "release"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(work)
	os.Exit(code)
}

var build = sync.OnceValue(func() error {
	command := exec.Command("../build.sh", version, filepath.Join(work, "linux_amd64", plugin))
	command.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64")
	command.Stderr = os.Stderr
	return command.Run()
})

func TestAVersionThatVaultDoesNotTakeIsNotBuilt(t *testing.T) {
	for given, remedy := range map[string]string{
		"0.4.0": "v0.4.0", "0.4.0-rc.1+x": "v0.4.0-rc.1+x",
		"latest": "v1.2.3", "": "v1.2.3", "v1.2": "v1.2.3", "v1.2.3.4": "v1.2.3", "v1.02.3": "v1.2.3", "V1.2.3": "v1.2.3", "v1.2.3 x": "v1.2.3", "v1.2.3-": "v1.2.3",
		"v1.2.3-a..b": "v1.2.3", "v1.2.3-a.": "v1.2.3", "v1.2.3+..": "v1.2.3", "v1.2.3\nlatest": "v1.2.3",
	} {
		file := filepath.Join(t.TempDir(), plugin)
		said, err := exec.Command("../build.sh", given, file).CombinedOutput()
		assert.Error(t, err, given)
		assert.Contains(t, string(said), "VERSION="+given+": ", given)
		assert.Contains(t, string(said), "Write VERSION="+remedy+".", given)
		assert.NoFileExists(t, file, given)
	}
}

// binaries is the folder with the plugin for linux on amd64, built as a release is.
func binaries(t *testing.T) string {
	t.Helper()
	require.NoError(t, build())
	return work
}

// newRelease runs a release of what was built, and returns its folder.
func newRelease(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	license := filepath.Join(t.TempDir(), "license")
	require.NoError(t, os.WriteFile(license, []byte("all yours"), 0o600))
	r := release{folder: folder, version: version, time: at, image: "registry.example.com/" + plugin, license: license}
	require.NoError(t, r.run(binaries(t), false))
	return folder
}

// fake is a program whose bytes are never run.
func fake(system, arch string) program {
	name := plugin
	if system == "windows" {
		name += ".exe"
	}
	return program{name: name, os: system, arch: arch, data: []byte(system + arch), info: &debug.BuildInfo{GoVersion: "go1.26.8"}}
}

func TestAReleaseOfABuiltProgram(t *testing.T) {
	folder := newRelease(t)
	base := plugin + "_" + version + "_linux_amd64"
	data, err := os.ReadFile(filepath.Join(binaries(t), "linux_amd64", plugin))
	require.NoError(t, err)
	sum := sha256Hex(data)

	t.Run("the archive holds program, licence and instructions, in order and without an owner", func(t *testing.T) {
		files := untarGzip(t, read(t, folder, base+".tar.gz"))
		assert.Equal(t, []string{base + "/", base + "/INSTALL.md", base + "/LICENSE", base + "/" + plugin}, names(files))
		for _, f := range files {
			assert.Equal(t, at, f.header.ModTime.UTC(), f.header.Name)
			assert.Zero(t, f.header.Uid+f.header.Gid, f.header.Name)
			assert.Empty(t, f.header.Uname+f.header.Gname, f.header.Name)
		}
		assert.Equal(t, int64(0o755), files[3].header.Mode)
		assert.Equal(t, sum, sha256Hex(files[3].data))
		assert.Contains(t, string(files[1].data), "vault plugin register -sha256="+sum+" -version="+version+" secret "+plugin+"\n")
		assert.Equal(t, "all yours", string(files[2].data))
	})
	t.Run("SHA256SUMS names every file, and the program where the archive puts it", func(t *testing.T) {
		want := map[string]string{base + "/" + plugin: sum}
		entries, err := os.ReadDir(folder)
		require.NoError(t, err)
		for _, entry := range entries {
			if entry.Name() != "SHA256SUMS" {
				want[entry.Name()] = sha256Hex(read(t, folder, entry.Name()))
			}
		}
		got := map[string]string{}
		for line := range strings.Lines(string(read(t, folder, "SHA256SUMS"))) {
			sum, name, found := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
			require.True(t, found, line)
			got[name] = sum
		}
		assert.Equal(t, want, got)
		assert.Len(t, got, 6)
	})
	t.Run("sha256sum checks archive and program in one call", func(t *testing.T) {
		require.NoError(t, exec.Command("tar", "-xzf", filepath.Join(folder, base+".tar.gz"), "-C", folder).Run())
		check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
		check.Dir = folder
		printed, err := check.CombinedOutput()
		require.NoError(t, err, string(printed))
		assert.Contains(t, string(printed), base+"/"+plugin+": OK")
	})
	t.Run("a second release is the same", func(t *testing.T) {
		assert.Equal(t, string(read(t, folder, "SHA256SUMS")), string(read(t, newRelease(t), "SHA256SUMS")))
	})
	t.Run("the SBOM is valid by CycloneDX's schema", func(t *testing.T) {
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(read(t, folder, base+".cdx.json")))
		require.NoError(t, err)
		assert.NoError(t, schema(t).Validate(document))
		document.(map[string]any)["serialNumber"] = "7"
		assert.Error(t, schema(t).Validate(document), "the schema checks nothing")
	})
	t.Run("the SBOM lists all that is in the program", func(t *testing.T) {
		var document cyclonedx.BOM
		require.NoError(t, cyclonedx.NewBOMDecoder(bytes.NewReader(read(t, folder, base+".cdx.json")), cyclonedx.BOMFileFormatJSON).Decode(&document))
		assert.Equal(t, version, document.Metadata.Component.Version)
		assert.Equal(t, sum, (*document.Metadata.Component.Hashes)[0].Value)
		assert.Equal(t, "2026-01-02T03:04:06Z", document.Metadata.Timestamp)

		listed, err := exec.Command("go", "version", "-m", filepath.Join(binaries(t), "linux_amd64", plugin)).Output()
		require.NoError(t, err)
		want := []string{"stdlib"}
		for line := range strings.Lines(string(listed)) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "dep" {
				want = append(want, fields[1])
			}
		}
		require.Contains(t, want, "github.com/hashicorp/vault/sdk")
		var got, refs []string
		for _, c := range *document.Components {
			got = append(got, c.Name)
			refs = append(refs, c.BOMRef)
			_, err := url.Parse(c.PackageURL)
			assert.NoError(t, err)
		}
		assert.ElementsMatch(t, want, got)
		assert.Equal(t, refs, *(*document.Dependencies)[0].Dependencies)
		assert.Len(t, slices.Compact(refs), len(want), "a component is named twice")
	})
}

// schema is CycloneDX's own, of the module that keeps all its versions.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for name, id := range map[string]string{
		"bom-1.6.schema.json":   "bom-1.6.schema.json",
		"spdx.schema.json":      "spdx.schema.json",
		"jsf-0.82.schemax.json": "jsf-0.82.schema.json",
	} {
		file, err := os.Open(filepath.Join(strings.TrimSpace(string(folder)), "schema", name))
		require.NoError(t, err)
		defer func() { _ = file.Close() }()
		document, err := jsonschema.UnmarshalJSON(file)
		require.NoError(t, err)
		require.NoError(t, compiler.AddResource("http://cyclonedx.org/schema/"+id, document))
	}
	compiled, err := compiler.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	require.NoError(t, err)
	return compiled
}

func TestPackageURLs(t *testing.T) {
	for _, test := range []struct{ name, module, version, want string }{
		{"in lower case", "github.com/Microsoft/go-winio", "v0.6.2", "pkg:golang/github.com/microsoft/go-winio@v0.6.2"},
		{"a plus sign is escaped", "github.com/pierrec/lz4", "v2.6.1+incompatible", "pkg:golang/github.com/pierrec/lz4@v2.6.1%2Bincompatible"},
	} {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, test.want, packageURL(test.module, test.version))
		})
	}
}

func TestAReplacedModuleIsListedAsWhatReplacesIt(t *testing.T) {
	c := library(&debug.Module{Path: "old", Version: "v1.0.0", Replace: &debug.Module{Path: "new", Version: "v2.0.0", Sum: "h1:x"}})
	assert.Equal(t, "pkg:golang/new@v2.0.0", c.PackageURL)
	assert.Equal(t, []property{{"go.sum", "h1:x"}}, c.Properties)
}

func TestAProgramThatIsNotOfTheReleaseIsRefused(t *testing.T) {
	own, err := os.Executable()
	require.NoError(t, err)
	moved := filepath.Join(t.TempDir(), "linux_arm64", plugin)
	require.NoError(t, os.Mkdir(filepath.Dir(moved), 0o700))
	require.NoError(t, os.Link(filepath.Join(binaries(t), "linux_amd64", plugin), moved))
	for _, test := range []struct{ name, path, version, want string }{
		{"built in another way", own, version, "was not built by scripts/build.sh"},
		{"of another version", filepath.Join(binaries(t), "linux_amd64", plugin), "v6.6.6", "was not built as version v6.6.6"},
		{"for another processor", moved, version, "is for linux on amd64"},
		{"not a program", "go.mod", version, "go.mod"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := readProgram(test.path, test.version)
			assert.ErrorContains(t, err, test.want)
		})
	}
}

func TestARefusedReleaseWritesNothing(t *testing.T) {
	for _, test := range []struct {
		name    string
		version string
		time    time.Time
		want    string
	}{
		{"a version that no image's tag can hold", "v1.0.0+x", at, "tag"},
		{"no time", version, time.Unix(0, 0).UTC(), "1980"},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			assert.ErrorContains(t, release{folder: folder, version: test.version, time: test.time, image: plugin}.run(binaries(t), false), test.want)
			entries, err := os.ReadDir(folder)
			require.NoError(t, err)
			assert.Empty(t, entries)
		})
	}
}

func TestWindowsGetsAZipAndACommandWithItsSuffix(t *testing.T) {
	r := release{folder: t.TempDir(), version: version, time: at}
	p := fake("windows", "arm64")
	var sums checksums
	require.NoError(t, r.writeArchives([]program{p}, &sums))
	base := plugin + "_" + version + "_windows_arm64"
	data := read(t, r.folder, base+".zip")
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	var got []string
	for _, f := range archive.File {
		got = append(got, f.Name)
		assert.True(t, at.Equal(f.Modified), f.Name)
	}
	assert.Equal(t, []string{base + "/", base + "/INSTALL.md", base + "/" + p.name}, got)
	content, err := fs.ReadFile(archive, base+"/"+p.name)
	require.NoError(t, err)
	assert.Equal(t, p.data, content)
	instructions, err := fs.ReadFile(archive, base+"/INSTALL.md")
	require.NoError(t, err)
	assert.Contains(t, string(instructions), " -command="+p.name+" secret "+plugin+"\n")
}

func TestImages(t *testing.T) {
	r := release{folder: t.TempDir(), version: version, time: at, image: "registry.example.com/team/" + plugin}
	amd64, arm64 := fake("linux", "amd64"), fake("linux", "arm64")
	var sums checksums
	require.NoError(t, r.writeImages([]program{fake("darwin", "arm64"), amd64, arm64, fake("windows", "amd64")}, &sums))

	for _, p := range []program{amd64, arm64} {
		t.Run("one for "+p.arch, func(t *testing.T) {
			l := newLayout(t, read(t, r.folder, r.base(p)+"_image.tar"))
			require.Len(t, l.index.Manifests, 1)
			config, described := l.checkImage(t, p, l.index.Manifests[0])
			assert.Equal(t, "9.8.7", l.index.Manifests[0].Annotations["org.opencontainers.image.ref.name"])

			// What `docker load` reads instead where images are kept in Docker's own store.
			var docker []dockerImage
			l.decode(t, "manifest.json", &docker)
			require.Len(t, docker, 1)
			assert.Equal(t, blobPath(described.Config), docker[0].Config)
			assert.Equal(t, []string{blobPath(described.Layers[0])}, docker[0].Layers)
			assert.Equal(t, []string{r.image + ":9.8.7", r.image + ":v9.8.7"}, docker[0].RepoTags)
			assert.Equal(t, "2026-01-02T03:04:06Z", config.Created)

			// Both hosts' configuration names these very sums.
			text := string(read(t, r.folder, plugin+"_"+version+"_image.md"))
			assert.Contains(t, text, "-oci_image="+r.image+" -sha256="+strings.TrimPrefix(described.Config.Digest, "sha256:")+" -version="+version)
			assert.Contains(t, text, "-oci_image="+r.image+" -sha256="+strings.TrimPrefix(l.index.Manifests[0].Digest, "sha256:")+" -version="+version)
			assert.Contains(t, text, `sha256sum   = "`+sha256Hex(p.data)+`"`)
		})
	}
	t.Run("one for all", func(t *testing.T) {
		l := newLayout(t, read(t, r.folder, plugin+"_"+version+"_oci.tar"))
		require.Len(t, l.index.Manifests, 1)
		assert.Equal(t, mediaIndex, l.index.Manifests[0].MediaType)
		var all index
		l.blob(t, l.index.Manifests[0], &all)
		require.Len(t, all.Manifests, 2)
		for i, p := range []program{amd64, arm64} {
			l.checkImage(t, p, all.Manifests[i])
		}
		// Hosts on arm64 ask for linux/arm64/v8.
		assert.Equal(t, &platform{Architecture: "amd64", OS: "linux"}, all.Manifests[0].Platform)
		assert.Equal(t, &platform{Architecture: "arm64", OS: "linux", Variant: "v8"}, all.Manifests[1].Platform)
	})
	t.Run("made again they are the same", func(t *testing.T) {
		again := r
		again.folder = t.TempDir()
		var second checksums
		require.NoError(t, again.writeImages([]program{amd64, arm64}, &second))
		assert.Equal(t, string(sums.text()), string(second.text()))
	})
	t.Run("none without a program for linux", func(t *testing.T) {
		assert.ErrorContains(t, r.writeImages([]program{fake("darwin", "arm64")}, &sums), "linux")
	})
}

// layout is an OCI image layout that was read back.
type layout struct {
	files map[string]entry
	index index
}

func newLayout(t *testing.T, archive []byte) layout {
	t.Helper()
	l := layout{files: map[string]entry{}}
	for _, f := range untar(t, archive) {
		assert.Equal(t, at, f.header.ModTime.UTC())
		assert.NotContains(t, l.files, f.header.Name)
		l.files[f.header.Name] = f
		if sum, ok := strings.CutPrefix(f.header.Name, "blobs/sha256/"); ok && sum != "" {
			assert.Equal(t, sum, sha256Hex(f.data))
		}
	}
	assert.JSONEq(t, `{"imageLayoutVersion": "1.0.0"}`, string(l.files["oci-layout"].data))
	l.decode(t, "index.json", &l.index)
	assert.Equal(t, 2, l.index.SchemaVersion)
	return l
}

func (l layout) decode(t *testing.T, name string, v any) {
	t.Helper()
	require.Contains(t, l.files, name)
	require.NoError(t, json.Unmarshal(l.files[name].data, v))
}

func (l layout) blob(t *testing.T, d descriptor, v any) {
	t.Helper()
	assert.Len(t, l.files[blobPath(d)].data, d.Size)
	l.decode(t, blobPath(d), v)
}

// checkImage checks an image down to the files that a container of it sees.
func (l layout) checkImage(t *testing.T, p program, d descriptor) (imageConfig, manifest) {
	t.Helper()
	assert.Equal(t, mediaManifest, d.MediaType)
	var m manifest
	l.blob(t, d, &m)
	assert.Equal(t, 2, m.SchemaVersion)
	assert.Equal(t, mediaManifest, m.MediaType)
	assert.Equal(t, mediaConfig, m.Config.MediaType)
	var config imageConfig
	l.blob(t, m.Config, &config)
	assert.Equal(t, *d.Platform, config.platform)
	assert.Equal(t, p.arch, config.Architecture)
	assert.Equal(t, "linux", config.OS)

	require.Len(t, m.Layers, 1)
	assert.Equal(t, mediaLayer, m.Layers[0].MediaType)
	compressed := l.files[blobPath(m.Layers[0])].data
	assert.Len(t, compressed, m.Layers[0].Size)
	layer := gunzip(t, compressed)
	assert.Equal(t, []string{"sha256:" + sha256Hex(layer)}, config.RootFS.DiffIDs)

	files := untar(t, layer)
	assert.Equal(t, []string{"etc/", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt", plugin}, names(files))
	require.Equal(t, []string{"/" + plugin}, config.Config.Entrypoint)
	program := files[slices.Index(names(files), path.Clean(config.Config.Entrypoint[0])[1:])]
	assert.Equal(t, p.data, program.data)
	assert.Equal(t, int64(0o755), program.header.Mode)
	assert.Equal(t, byte(tar.TypeReg), program.header.Typeflag)
	pool := x509.NewCertPool()
	assert.True(t, pool.AppendCertsFromPEM(files[3].data))
	assert.Greater(t, bytes.Count(files[3].data, []byte("BEGIN CERTIFICATE")), 100)
	return config, m
}

type entry struct {
	header *tar.Header
	data   []byte
}

func names(files []entry) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.header.Name)
	}
	return names
}

func untar(t *testing.T, archive []byte) []entry {
	t.Helper()
	var files []entry
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		files = append(files, entry{header, data})
	}
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	assert.Zero(t, r.ModTime)
	assert.Empty(t, r.Name)
	plain, err := io.ReadAll(r)
	require.NoError(t, err)
	return plain
}

func untarGzip(t *testing.T, data []byte) []entry {
	t.Helper()
	return untar(t, gunzip(t, data))
}

func read(t *testing.T, folder, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, name))
	require.NoError(t, err)
	return data
}
