package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// file is an entry of an archive or of an image's layer; a name that ends in a
// slash is a folder.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

func inFolder(folder string, files []file) []file {
	moved := []file{{name: folder + "/", mode: 0o755}}
	for _, f := range files {
		f.name = path.Join(folder, f.name)
		moved = append(moved, f)
	}
	return moved
}

// sorted orders entries by name, which puts a folder before what is in it.
func sorted(files []file) []file {
	return slices.SortedFunc(slices.Values(files), func(a, b file) int { return cmp.Compare(a.name, b.name) })
}

// tarred packs files that all belong to user and group 0 and are of one time.
func tarred(files []file, at time.Time) ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range sorted(files) {
		header := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     f.name,
			Mode:     int64(f.mode.Perm()),
			Size:     int64(len(f.data)),
			ModTime:  at,
			Format:   tar.FormatUSTAR,
		}
		if strings.HasSuffix(f.name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// gzipped compresses without a name or a time.
func gzipped(data []byte) ([]byte, error) {
	var buffer bytes.Buffer
	w := gzip.NewWriter(&buffer)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

func tarGzip(files []file, at time.Time) ([]byte, error) {
	packed, err := tarred(files, at)
	if err != nil {
		return nil, err
	}
	return gzipped(packed)
}

func zipped(files []file, at time.Time) ([]byte, error) {
	var buffer bytes.Buffer
	w := zip.NewWriter(&buffer)
	for _, f := range sorted(files) {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: at}
		header.SetMode(f.mode)
		if strings.HasSuffix(f.name, "/") {
			header.Method = zip.Store
			header.SetMode(f.mode | fs.ModeDir)
		}
		entry, err := w.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		if _, err := entry.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}
