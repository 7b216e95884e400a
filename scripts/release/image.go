package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// The parts of the OCI image format 1.1 that are used here, and of the file that
// `docker load` reads beside it.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Variant      string `json:"variant,omitempty"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	imageConfig struct {
		Created string `json:"created"`
		platform
		Config  containerConfig `json:"config"`
		RootFS  rootFS          `json:"rootfs"`
		History []history       `json:"history"`
	}
	containerConfig struct {
		Entrypoint []string
		Labels     map[string]string
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	history struct {
		Created   string `json:"created"`
		CreatedBy string `json:"created_by"`
	}
	dockerImage struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
)

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// image is one for one platform, with its blobs by digest.
type image struct {
	manifest descriptor
	config   descriptor
	layer    descriptor
	blobs    []file
}

// writeImages writes an image for each program for linux that `docker load` takes
// and Vault's containers are made from; one of all of them for a registry, which
// OpenBao downloads from; and both hosts' configuration.
func (r release) writeImages(programs []program, sums *checksums) error {
	var images []image
	var told []map[string]string
	for _, p := range programs {
		if p.os != "linux" {
			continue
		}
		i, err := r.newImage(p)
		if err != nil {
			return err
		}
		name := r.base(p) + "_image.tar"
		// Vault looks for the tag without the v, OpenBao for the version as it is.
		tags := []string{r.image + ":" + tag(r.version), r.image + ":" + r.version}
		archive, err := r.layout(i.blobs, i.manifest, &dockerImage{blobPath(i.config), tags, []string{blobPath(i.layer)}})
		if err != nil {
			return err
		}
		if err := r.write(name, archive, sums); err != nil {
			return err
		}
		images = append(images, i)
		told = append(told, map[string]string{
			"File":     name,
			"Arch":     p.arch,
			"Config":   i.config.Digest[len("sha256:"):],
			"Manifest": i.manifest.Digest[len("sha256:"):],
			"Program":  sha256Hex(p.data),
		})
	}
	if len(images) == 0 {
		return errors.New("there is no program for linux to make an image of")
	}

	all := index{SchemaVersion: 2, MediaType: mediaIndex}
	var blobs []file
	for _, i := range images {
		all.Manifests = append(all.Manifests, i.manifest)
		blobs = append(blobs, i.blobs...)
	}
	top, blob := newBlob(mediaIndex, encoded(all))
	archive, err := r.layout(append(blobs, blob), top, nil)
	if err != nil {
		return err
	}
	name := plugin + "_" + r.version + "_oci.tar"
	if err := r.write(name, archive, sums); err != nil {
		return err
	}
	return r.write(plugin+"_"+r.version+"_image.md", fill(imageTemplate, map[string]any{
		"Plugin": plugin, "Version": r.version, "Tag": tag(r.version), "Image": r.image, "All": name, "Images": told,
	}), sums)
}

// newImage makes an image from nothing: it holds the program in its root and the
// certificate authorities that TLS needs, and runs the program.
func (r release) newImage(p program) (image, error) {
	created := r.time.Format(time.RFC3339)
	layer, err := tarred([]file{
		{name: "etc/", mode: 0o755},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: authorities()},
		{name: p.name, mode: 0o755, data: p.data},
	}, r.time)
	if err != nil {
		return image{}, err
	}
	compressed, err := gzipped(layer)
	if err != nil {
		return image{}, err
	}
	on := platform{Architecture: p.arch, OS: p.os}
	if p.arch == "arm64" {
		on.Variant = "v8" // Without it OpenBao on arm64 does not find the image.
	}
	config := imageConfig{
		Created:  created,
		platform: on,
		Config: containerConfig{
			Entrypoint: []string{"/" + p.name},
			Labels: map[string]string{
				"org.opencontainers.image.title":   plugin,
				"org.opencontainers.image.version": r.version,
			},
		},
		RootFS:  rootFS{"layers", []string{"sha256:" + sha256Hex(layer)}},
		History: []history{{created, plugin + " " + r.version}},
	}

	var i image
	var layerBlob, configBlob, manifestBlob file
	i.layer, layerBlob = newBlob(mediaLayer, compressed)
	i.config, configBlob = newBlob(mediaConfig, encoded(config))
	i.manifest, manifestBlob = newBlob(mediaManifest, encoded(manifest{2, mediaManifest, i.config, []descriptor{i.layer}}))
	i.manifest.Platform = &on
	i.blobs = []file{layerBlob, configBlob, manifestBlob}
	return i, nil
}

// layout packs blobs as an OCI image layout, named as the version.
func (r release) layout(blobs []file, top descriptor, docker *dockerImage) ([]byte, error) {
	top.Annotations = map[string]string{
		"io.containerd.image.name":          r.image + ":" + tag(r.version),
		"org.opencontainers.image.ref.name": tag(r.version),
	}
	files := append([]file{
		{name: "blobs/", mode: 0o755},
		{name: "blobs/sha256/", mode: 0o755},
		{name: "index.json", mode: 0o644, data: encoded(index{2, mediaIndex, []descriptor{top}})},
		{name: "oci-layout", mode: 0o644, data: encoded(map[string]string{"imageLayoutVersion": "1.0.0"})},
	}, blobs...)
	if docker != nil {
		files = append(files, file{name: "manifest.json", mode: 0o644, data: encoded([]dockerImage{*docker})})
	}
	return tarred(files, r.time)
}

func newBlob(mediaType string, data []byte) (descriptor, file) {
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + sha256Hex(data), Size: len(data)}
	return d, file{name: blobPath(d), mode: 0o644, data: data}
}

func blobPath(d descriptor) string {
	return "blobs/sha256/" + d.Digest[len("sha256:"):]
}

func encoded(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // The types are all ours.
	}
	return data
}

// authorities are those that Mozilla trusts without a condition; a file can't say
// the conditions of the others.
func authorities() []byte {
	var buffer bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			buffer.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return buffer.Bytes()
}
