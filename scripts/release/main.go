// Command release turns built programs of the plugin into what a release consists
// of: an archive, an SBOM and a checksum each, and images for linux. The same
// programs and the same arguments give the same bytes on every machine.
//
// It is a module of its own, so that what it needs is not the plugin's.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	var r release
	var epoch int64
	var binaries string
	var imageOnly bool
	flag.StringVar(&binaries, "binaries", "", "`folder` that holds <os>_<arch>/<program> for each platform")
	flag.StringVar(&r.folder, "out", "", "`folder` to write to")
	flag.StringVar(&r.version, "version", "", "the version that the programs were built with, like v1.2.3")
	flag.Int64Var(&epoch, "epoch", 0, "the time of everything that has a time, in `seconds` since 1970")
	flag.StringVar(&r.image, "image", plugin, "the image's `name` without a tag")
	flag.StringVar(&r.license, "license", "", "a `file` to put into the archives, if it exists")
	flag.BoolVar(&imageOnly, "image-only", false, "write the images and their checksums, no archives")
	flag.Parse()
	r.time = time.Unix(epoch, 0).UTC()
	if err := r.run(binaries, imageOnly); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release is what all files of a release have in common.
type release struct {
	folder  string
	version string
	time    time.Time
	image   string
	license string
}

func (r release) run(binaries string, imageOnly bool) error {
	if binaries == "" || r.folder == "" || r.version == "" || r.time.Year() < 1980 {
		return errors.New("-binaries, -out, -version and an -epoch after 1980 are needed") // Zip knows no earlier time.
	}
	if strings.ContainsAny(r.version, "+/ ") {
		return fmt.Errorf("version %q: an image's tag takes letters, digits, '.', '-' and '_'", r.version)
	}
	paths, err := filepath.Glob(filepath.Join(binaries, "*", plugin+"*"))
	if err != nil {
		return err
	}
	var programs []program
	for _, path := range paths {
		p, err := readProgram(path, r.version)
		if err != nil {
			return err
		}
		programs = append(programs, p)
	}
	if len(programs) == 0 {
		return fmt.Errorf("there is no program in %s", binaries)
	}

	var sums checksums
	if !imageOnly {
		if err := r.writeArchives(programs, &sums); err != nil {
			return err
		}
	}
	if err := r.writeImages(programs, &sums); err != nil {
		return err
	}
	return r.write("SHA256SUMS", sums.text(), nil)
}

// writeArchives writes archive and SBOM of each program.
func (r release) writeArchives(programs []program, sums *checksums) error {
	for _, p := range programs {
		folder := r.base(p)
		files := []file{
			{name: p.name, mode: 0o755, data: p.data},
			{name: "INSTALL.md", mode: 0o644, data: r.instructions(p)},
		}
		if r.license != "" {
			text, err := os.ReadFile(r.license)
			switch {
			case err == nil:
				files = append(files, file{name: "LICENSE", mode: 0o644, data: text})
			case !errors.Is(err, os.ErrNotExist):
				return err
			}
		}
		name, pack := folder+".tar.gz", tarGzip
		if p.os == "windows" {
			name, pack = folder+".zip", zipped
		}
		archive, err := pack(inFolder(folder, files), r.time)
		if err != nil {
			return err
		}
		sbom, err := r.sbom(p)
		if err != nil {
			return err
		}
		if err := r.write(name, archive, sums); err != nil {
			return err
		}
		if err := r.write(folder+".cdx.json", sbom, sums); err != nil {
			return err
		}
		// Where the archive puts it: one call of sha256sum checks both.
		sums.add(folder+"/"+p.name, p.data)
	}
	return nil
}

// base is what the names of a program's files begin with.
func (r release) base(p program) string {
	return strings.Join([]string{plugin, r.version, p.os, p.arch}, "_")
}

// write writes a file of the release, and its checksum to sums unless that is nil.
func (r release) write(name string, data []byte, sums *checksums) error {
	if sums != nil {
		sums.add(name, data)
	}
	return os.WriteFile(filepath.Join(r.folder, name), data, 0o644) //nolint:gosec // Everybody may read a release.
}

// checksums are the lines of SHA256SUMS.
type checksums []string

func (c *checksums) add(name string, data []byte) {
	*c = append(*c, fmt.Sprintf("%s  %s\n", sha256Hex(data), name))
}

// text sorts the lines by the files' names.
func (c *checksums) text() []byte {
	name := func(line string) string { return line[64:] }
	slices.SortFunc(*c, func(a, b string) int { return strings.Compare(name(a), name(b)) })
	return []byte(strings.Join(*c, ""))
}
