package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
)

// pingTimeout is how long Redis may take to answer a probe.
const pingTimeout = time.Second

type healthObject struct {
	Status  string            `json:"status"` // "ok" or "unavailable"
	Version string            `json:"version"`
	Durable bool              `json:"durable"` // whether jobs survive a restart of Redis
	Checks  map[string]string `json:"checks"`
}

// live is GET /livez: the process serves. It looks at nothing else, so that an outage of Redis does not
// make an orchestrator restart every API.
func (s *Server) live(c echo.Context) error {
	return writeJSON(c, http.StatusOK, healthObject{Status: "ok", Version: s.cfg.Version, Durable: !s.cfg.Volatile})
}

// ready is GET /readyz and /healthz: the server can accept jobs. Upstreams are none of its business.
func (s *Server) ready(c echo.Context) error {
	h := healthObject{Status: "ok", Version: s.cfg.Version, Durable: !s.cfg.Volatile, Checks: map[string]string{"redis": "ok", "memory": "ok", "server": "ok"}}
	ctx, cancel := context.WithTimeout(c.Request().Context(), pingTimeout)
	defer cancel()
	if err := s.queue.Ping(ctx); err != nil {
		h.Status, h.Checks["redis"] = "unavailable", "does not answer"
	}
	if s.cfg.Full() { // what is stored can still be read and canceled, so the server is of use
		h.Checks["memory"] = "full: new jobs are refused"
	}
	if s.stopping.Err() != nil {
		h.Status, h.Checks["server"] = "unavailable", "draining"
	}
	status := http.StatusOK
	if h.Status != "ok" {
		status = http.StatusServiceUnavailable
	}
	return writeJSON(c, status, h)
}

// guardDashboard asks for the dashboard's key, if it has one: as the password of HTTP Basic, which a
// browser asks for, or as a bearer token.
func (s *Server) guardDashboard(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if key := s.cfg.DashboardKey.Reveal(); key != "" && !sameSecret(given(c.Request()), key) {
			c.Response().Header().Set("WWW-Authenticate", `Basic realm="Ferry dashboard", charset="UTF-8"`)
			return &Error{
				Status: http.StatusUnauthorized, Type: invalidRequest, Code: "invalid_dashboard_key", Param: "Authorization",
				Message: "Authorization: give the dashboard's key as password (any user) or as bearer token.",
			}
		}
		return next(c)
	}
}

func given(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

// sameSecret compares in a time that depends on neither.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
