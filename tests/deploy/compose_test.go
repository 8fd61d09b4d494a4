// Package deploy_test compares what is under deployments, and docker-compose.yml, with the code: names and numbers
// that no compiler sees.
package deploy_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/config/workerconfig"
	"github.com/ferry-queue/ferry/internal/upstreamtest"
)

const root = "../.."

// A compose is the part of the Compose specification that docker-compose.yml uses. A key it does not name is an
// error: mostly it is a misspelt one, which docker would find only at the next start.
type compose struct {
	Name     string              `yaml:"name"`
	Ferry    map[string]any      `yaml:"x-ferry"`
	Services map[string]*service `yaml:"services"`
	Volumes  map[string]any      `yaml:"volumes"`
}

type service struct {
	Image       string                `yaml:"image"`
	Build       *build                `yaml:"build"`
	Command     []string              `yaml:"command"`
	Environment map[string]string     `yaml:"environment"`
	Ports       []string              `yaml:"ports"`
	Volumes     []string              `yaml:"volumes"`
	Profiles    []string              `yaml:"profiles"`
	DependsOn   map[string]dependency `yaml:"depends_on"`
	Healthcheck *healthcheck          `yaml:"healthcheck"`
	Restart     string                `yaml:"restart"`
	ReadOnly    bool                  `yaml:"read_only"`
	CapDrop     []string              `yaml:"cap_drop"`
	SecurityOpt []string              `yaml:"security_opt"`
	StopGrace   string                `yaml:"stop_grace_period"`
	Deploy      struct {
		Replicas int `yaml:"replicas"`
	} `yaml:"deploy"`
}

type build struct {
	Context    string `yaml:"context"`
	Dockerfile string `yaml:"dockerfile"`
}

type dependency struct {
	Condition string `yaml:"condition"`
}

type healthcheck struct {
	Test     []string `yaml:"test"`
	Interval string   `yaml:"interval"`
	Timeout  string   `yaml:"timeout"`
	Retries  int      `yaml:"retries"`
}

func readCompose(t *testing.T) compose {
	t.Helper()
	var file compose
	decodeYAML(t, "docker-compose.yml", &file)
	return file
}

// decodeYAML refuses keys that the target does not name.
func decodeYAML(t *testing.T, name string, target any) {
	t.Helper()
	text := readFile(t, name)
	require.NoError(t, yaml.UnmarshalWithOptions([]byte(text), target, yaml.Strict()), name)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func TestImagesArePinned(t *testing.T) {
	for name, s := range readCompose(t).Services {
		if s.Build != nil {
			require.FileExists(t, filepath.Join(root, s.Build.Context, s.Build.Dockerfile), name)
			continue
		}
		require.True(t, pinned(s.Image), "%s: image %s has no exact version", name, s.Image)
	}
}

func TestOurCommandsAreInTheImage(t *testing.T) {
	installed := readDockerfile(t).installed
	for name, s := range readCompose(t).Services {
		if s.Build == nil {
			continue
		}
		require.NotEmpty(t, s.Command, "%s: the image has three binaries, so each service names its own", name)
		require.Contains(t, installed, s.Command[0], "%s", name)
	}
}

func TestOurServicesReadTheirEnvironment(t *testing.T) {
	known := environmentNames(t)
	for name, s := range readCompose(t).Services {
		if s.Build == nil {
			continue
		}
		for variable := range s.Environment {
			require.Contains(t, known, variable, "%s: the code does not read it", name)
		}
	}
}

func TestOurServicesStartWithTheirEnvironment(t *testing.T) {
	services := readCompose(t).Services
	for _, name := range []string{"api", "worker"} {
		cfg, err := config.Load(config.Source{Getenv: func(variable string) string {
			return withDefault(services[name].Environment[variable])
		}})
		require.NoError(t, err, name)
		require.Len(t, cfg.Upstreams, 1, "%s: make up needs no key", name)
		_, err = workerconfig.Of(cfg)
		require.NoError(t, err, name)
	}
}

// withDefault is what docker compose makes of ${NAME:-default} where NAME is not set.
func withDefault(value string) string {
	return regexp.MustCompile(`\$\{\w+:-([^}]*)\}`).ReplaceAllString(value, "$1")
}

func TestOnlyWorkersHoldTheUpstreamKey(t *testing.T) {
	for name, s := range readCompose(t).Services {
		_, holds := s.Environment["OPENAI_API_KEY"]
		require.Equal(t, name == "worker", holds, name)
	}
}

func TestServersUseTheSameRedisAndUpstream(t *testing.T) {
	services := readCompose(t).Services
	for _, variable := range []string{"FERRY_REDIS_URL", "OPENAI_BASE_URL"} {
		require.Equal(t, services["api"].Environment[variable], services["worker"].Environment[variable], variable)
	}
	upstream := services["worker"].Environment["OPENAI_BASE_URL"]
	require.Contains(t, upstream, "http://sim"+flag(services["sim"].Command, "--addr")+"/v1")
}

func TestTheSimulatedUpstreamUnderstandsItsFlags(t *testing.T) {
	command := readCompose(t).Services["sim"].Command
	known := commandFlags(t, "SimCmd")
	for _, argument := range command {
		if strings.HasPrefix(argument, "--") {
			require.Contains(t, known, argument)
		}
	}
	_, err := upstreamtest.ParseFaults(flag(command, "--chaos"))
	require.NoError(t, err)
}

func TestPublishedPortsAreLoopbackOnly(t *testing.T) {
	for name, s := range readCompose(t).Services {
		for _, port := range s.Ports {
			require.Regexp(t, `^127\.0\.0\.1:\d+:\d+$`, port, "%s asks nobody for a password", name)
		}
	}
}

func TestPublishedPortsDoNotCollide(t *testing.T) {
	owner := map[string]string{}
	for name, s := range readCompose(t).Services {
		for _, port := range s.Ports {
			published := port[:strings.LastIndex(port, ":")]
			require.Empty(t, owner[published], "%s and %s publish %s", name, owner[published], published)
			owner[published] = name
		}
	}
}

func TestThePublishedPortIsTheOneTheAPIListensOn(t *testing.T) {
	api := readCompose(t).Services["api"]
	require.Len(t, api.Ports, 1)
	require.True(t, strings.HasSuffix(api.Ports[0], api.Environment["FERRY_ADDR"]), "%s, FERRY_ADDR %s", api.Ports[0], api.Environment["FERRY_ADDR"])
}

func TestTheImageExposesWhatTheServersListenOn(t *testing.T) {
	services := readCompose(t).Services
	listened := []string{
		portOf(t, services["api"].Environment["FERRY_ADDR"]),
		portOf(t, services["worker"].Environment["FERRY_ADMIN_ADDR"]),
	}
	require.ElementsMatch(t, listened, readDockerfile(t).exposed)
}

func TestRedisKeepsJobs(t *testing.T) {
	redis := readCompose(t).Services["redis"]
	require.Equal(t, "yes", flag(redis.Command, "--appendonly"))
	require.Equal(t, "everysec", flag(redis.Command, "--appendfsync"))
	require.Equal(t, "noeviction", flag(redis.Command, "--maxmemory-policy"))
	require.Contains(t, redis.Volumes, "redis:/data")
	require.Empty(t, redis.Ports, "Redis has no password here")
}

func TestServersWaitForRedis(t *testing.T) {
	services := readCompose(t).Services
	require.NotNil(t, services["redis"].Healthcheck)
	for name, s := range services {
		if s.Environment["FERRY_REDIS_URL"] != "" {
			require.Equal(t, "service_healthy", s.DependsOn["redis"].Condition, name)
		}
	}
}

func TestWorkersDrainBeforeTheyAreKilled(t *testing.T) {
	worker := readCompose(t).Services["worker"]
	drain, err := time.ParseDuration(worker.Environment["FERRY_DRAIN"])
	require.NoError(t, err)
	grace, err := time.ParseDuration(worker.StopGrace)
	require.NoError(t, err)
	require.Greater(t, grace, drain)
}

// Only a volume can be written, and what a worker writes there must outlive it.
func TestWorkersKeepAnswersOnAVolume(t *testing.T) {
	worker := readCompose(t).Services["worker"]
	require.True(t, worker.ReadOnly)
	require.Len(t, worker.Volumes, 1)
	source, inside, _ := strings.Cut(worker.Volumes[0], ":")
	require.Contains(t, readCompose(t).Volumes, source)
	require.True(t, strings.HasPrefix(worker.Environment["FERRY_SPOOL_DIR"], inside+"/"))
}

func TestAsynqmonIsReadOnly(t *testing.T) {
	require.Contains(t, readCompose(t).Services["asynqmon"].Command, "--read-only")
}

func TestWhatServicesReferToExists(t *testing.T) {
	file := readCompose(t)
	for name, s := range file.Services {
		for other := range s.DependsOn {
			require.Contains(t, file.Services, other, "%s depends on it", name)
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if strings.HasPrefix(source, "./") {
				_, err := os.Stat(filepath.Join(root, source))
				require.NoError(t, err, name)
				continue
			}
			require.Contains(t, file.Volumes, source, "%s mounts it", name)
		}
	}
}

// The tests above need no docker, so the file is checked everywhere; docker's own word is taken where it can be had.
func TestDockerComposeAcceptsTheFile(t *testing.T) {
	if err := exec.CommandContext(t.Context(), "docker", "compose", "version").Run(); err != nil {
		t.Logf("not asked: docker compose is not installed (%v)", err)
		return
	}
	command := exec.CommandContext(t.Context(), "docker", "compose", "--profile", "*", "config", "--quiet")
	command.Dir = root
	output, err := command.CombinedOutput()
	require.NoError(t, err, "%s", output)
	t.Log("docker compose config accepts the file")
}

// flag returns the argument after a flag, empty when the flag is not there.
func flag(command []string, name string) string {
	i := slices.Index(command, name)
	if i < 0 || i+1 == len(command) {
		return ""
	}
	return command[i+1]
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return port
}
