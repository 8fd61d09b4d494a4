// Package apiconfig turns what an operator set into the Config of the API.
package apiconfig

import (
	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/dashboard"
)

// Of returns the API's part of a configuration that [config.Load] has checked. What only the API has is
// checked by its own Validate.
func Of(c *config.Config) api.Config {
	return api.Config{
		MaxBody: c.API.MaxBody, MaxWait: c.API.MaxWait,
		Dashboard: dashboard.Mode(c.Dashboard.Mode), DashboardKey: c.Dashboard.Key,
		Jobs: c.TasksConfig(), Upstreams: c.UpstreamNames(), Breakers: c.Breakers(), Version: config.Version(),
	}
}
