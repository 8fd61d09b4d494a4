package deploy_test

import (
	"encoding/json"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrometheusScrapesEveryServer(t *testing.T) {
	var file struct {
		Global struct {
			ScrapeInterval string `yaml:"scrape_interval"`
		} `yaml:"global"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			StaticConfigs []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
			DNS []struct {
				Names           []string `yaml:"names"`
				Type            string   `yaml:"type"`
				Port            int      `yaml:"port"`
				RefreshInterval string   `yaml:"refresh_interval"`
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	decodeYAML(t, "deployments/prometheus/prometheus.yml", &file)
	var targets []string
	for _, job := range file.ScrapeConfigs {
		for _, static := range job.StaticConfigs {
			targets = append(targets, static.Targets...)
		}
		for _, dns := range job.DNS {
			for _, name := range dns.Names {
				targets = append(targets, name+":"+strconv.Itoa(dns.Port))
			}
		}
	}
	services := readCompose(t).Services
	require.ElementsMatch(t, []string{
		"api" + services["api"].Environment["FERRY_ADDR"],
		"worker" + services["worker"].Environment["FERRY_ADMIN_ADDR"],
	}, targets)
}

// A dashboard is the part of Grafana's model that refers to something outside it.
type dashboard struct {
	UID    string `json:"uid"`
	Title  string `json:"title"`
	Panels []struct {
		ID         int        `json:"id"`
		Type       string     `json:"type"`
		Title      string     `json:"title"`
		Datasource datasource `json:"datasource"`
		Targets    []struct {
			Expr         string     `json:"expr"`
			LegendFormat string     `json:"legendFormat"`
			Datasource   datasource `json:"datasource"`
		} `json:"targets"`
	} `json:"panels"`
}

type datasource struct {
	UID string `json:"uid"`
}

func readDashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, "deployments/grafana/dashboards/*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, names)
	dashboards := map[string]dashboard{}
	for _, name := range names {
		var d dashboard
		require.NoError(t, json.Unmarshal([]byte(readFile(t, strings.TrimPrefix(name, root))), &d), name)
		dashboards[filepath.Base(name)] = d
	}
	return dashboards
}

func TestDashboardsShowMetricsThatTheCodeHas(t *testing.T) {
	known := metricLabels(t)
	metric := regexp.MustCompile(`\b(?:ferry|asynq)_\w+`)
	for name, d := range readDashboards(t) {
		for _, panel := range d.Panels {
			for _, target := range panel.Targets {
				labels := []string{"le"}
				found := metric.FindAllString(target.Expr, -1)
				require.NotEmpty(t, found, "%s, panel %q: %s", name, panel.Title, target.Expr)
				for _, series := range found {
					require.Contains(t, known, family(series), "%s, panel %q", name, panel.Title)
					labels = append(labels, known[family(series)]...)
				}
				require.Subset(t, labels, usedLabels(target.Expr+target.LegendFormat), "%s, panel %q: %s", name, panel.Title, target.Expr)
			}
		}
	}
}

// usedLabels returns the labels that a query groups by, selects, or shows: by (a, b), {a="x"}, {{a}}.
func usedLabels(query string) []string {
	var labels []string
	for _, group := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(query, -1) {
		labels = append(labels, strings.Split(strings.ReplaceAll(group[1], " ", ""), ",")...)
	}
	for _, label := range regexp.MustCompile(`(\w+) ?!?=~?"|\{\{(\w+)\}\}`).FindAllStringSubmatch(query, -1) {
		labels = append(labels, label[1]+label[2])
	}
	return labels
}

func TestUsedLabels(t *testing.T) {
	require.Equal(t, []string{"queue", "state", "kind", "upstream"},
		usedLabels(`max by (queue, state) (asynq_tasks_enqueued_total{kind!="chat"}) {{upstream}}`))
}

// family returns the metric that a series belongs to: a histogram has three.
func family(series string) string {
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		if base, ok := strings.CutSuffix(series, suffix); ok {
			return base
		}
	}
	return series
}

func TestDashboardPanelsAreDistinct(t *testing.T) {
	for name, d := range readDashboards(t) {
		seen := map[int]bool{}
		for _, panel := range d.Panels {
			require.False(t, seen[panel.ID], "%s: two panels have id %d", name, panel.ID)
			seen[panel.ID] = true
		}
	}
}

func TestDashboardsAskTheProvisionedDatasource(t *testing.T) {
	var file struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name      string         `yaml:"name"`
			UID       string         `yaml:"uid"`
			Type      string         `yaml:"type"`
			Access    string         `yaml:"access"`
			URL       string         `yaml:"url"`
			IsDefault bool           `yaml:"isDefault"`
			Editable  bool           `yaml:"editable"`
			JSONData  map[string]any `yaml:"jsonData"`
		} `yaml:"datasources"`
	}
	decodeYAML(t, "deployments/grafana/provisioning/datasources/prometheus.yml", &file)
	require.Len(t, file.Datasources, 1)
	require.Equal(t, "http://prometheus:9090", file.Datasources[0].URL)
	require.Contains(t, readCompose(t).Services, "prometheus")
	for name, d := range readDashboards(t) {
		for _, panel := range d.Panels {
			if panel.Type == "row" {
				continue
			}
			require.Equal(t, file.Datasources[0].UID, panel.Datasource.UID, "%s, panel %q", name, panel.Title)
			for _, target := range panel.Targets {
				require.Equal(t, file.Datasources[0].UID, target.Datasource.UID, "%s, panel %q", name, panel.Title)
			}
		}
	}
}

func TestGrafanaFindsTheDashboards(t *testing.T) {
	var file struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name            string `yaml:"name"`
			Type            string `yaml:"type"`
			DisableDeletion bool   `yaml:"disableDeletion"`
			Options         struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	decodeYAML(t, "deployments/grafana/provisioning/dashboards/ferry.yml", &file)
	require.Len(t, file.Providers, 1)
	inside := file.Providers[0].Options.Path
	grafana := readCompose(t).Services["grafana"]
	require.Contains(t, grafana.Volumes, "./deployments/grafana/dashboards:"+inside+":ro")
	require.Contains(t, grafana.Volumes, "./deployments/grafana/provisioning:/etc/grafana/provisioning:ro")
	home := grafana.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	require.Equal(t, inside, path.Dir(home))
	require.Contains(t, readDashboards(t), path.Base(home))
}
