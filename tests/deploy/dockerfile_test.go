package deploy_test

import (
	"go/version"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A dockerfile is what the other files must agree with.
type dockerfile struct {
	images    []string // of the stages, in order
	installed []string // files that the last stage copies from the first
	exposed   []string
	text      string
}

func readDockerfile(t *testing.T) dockerfile {
	t.Helper()
	d := dockerfile{text: readFile(t, "deployments/docker/Dockerfile")}
	for line := range strings.Lines(d.text) {
		words := slices.DeleteFunc(strings.Fields(line), func(word string) bool { return strings.HasPrefix(word, "--platform") })
		switch {
		case len(words) < 2:
		case words[0] == "FROM":
			d.images = append(d.images, words[1])
		case words[0] == "EXPOSE":
			d.exposed = append(d.exposed, words[1:]...)
		case words[0] == "COPY" && strings.HasPrefix(words[1], "--from="):
			target := words[len(words)-1]
			for _, file := range words[2 : len(words)-1] {
				d.installed = append(d.installed, path.Join(target, path.Base(file)))
			}
		}
	}
	return d
}

func TestDockerfileImagesArePinned(t *testing.T) {
	images := readDockerfile(t).images
	require.NotEmpty(t, images)
	for _, image := range images {
		require.True(t, pinned(image), "%s has no exact version", image)
	}
}

func TestTheImageHasEveryBinary(t *testing.T) {
	d := readDockerfile(t)
	mains, err := filepath.Glob(filepath.Join(root, "cmd", "*", "main.go"))
	require.NoError(t, err)
	var binaries []string
	for _, file := range mains {
		name := filepath.Base(filepath.Dir(file))
		binaries = append(binaries, "/"+name)
		require.Contains(t, d.text, " ./cmd/"+name, "not built")
	}
	require.ElementsMatch(t, binaries, d.installed)
}

func TestTheImageIsStaticAndUnprivileged(t *testing.T) {
	d := readDockerfile(t)
	require.Contains(t, d.text, "CGO_ENABLED=0")
	require.Contains(t, d.text, "-trimpath")
	require.True(t, strings.HasSuffix(d.images[len(d.images)-1], ":nonroot"))
}

func TestTheImageCompilerIsNewEnough(t *testing.T) {
	wanted := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(readFile(t, "go.mod"))
	used := regexp.MustCompile(`golang:([\d.]+)`).FindStringSubmatch(readDockerfile(t).text)
	require.Len(t, wanted, 2)
	require.Len(t, used, 2)
	require.GreaterOrEqual(t, version.Compare("go"+used[1], "go"+wanted[1]), 0, "image has go%s, go.mod wants %s", used[1], wanted[1])
}

// pinned reports whether an image names a release: golang:1.26.8, or static-debian12:nonroot.
func pinned(image string) bool {
	name := path.Base(image)
	_, tag, tagged := strings.Cut(name, ":")
	return tagged && tag != "latest" && strings.ContainsAny(name, "0123456789")
}

func TestPinned(t *testing.T) {
	tests := map[string]bool{
		"redis:7.2.5-alpine":                        true,
		"gcr.io/distroless/static-debian12:nonroot": true,
		"localhost:5000/redis":                      false,
		"redis":                                     false,
		"redis:latest":                              false,
		"redis:alpine":                              false,
	}
	for image, want := range tests {
		require.Equal(t, want, pinned(image), image)
	}
}
