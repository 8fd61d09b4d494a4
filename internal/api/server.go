// Package api is the HTTP surface: it reads and checks requests, hands them to the queue, and answers. It
// is the only package that speaks echo, and it never talks to an upstream.
//
// The idea: a reply leaves only after Redis has what it says. The server keeps nothing itself, so any
// replica serves any job.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/internal/breaker"
	"github.com/ferry-queue/ferry/internal/dashboard"
	"github.com/ferry-queue/ferry/internal/openai"
	"github.com/ferry-queue/ferry/internal/tasks"
)

// Config is what the server lets in and shows.
type Config struct {
	MaxBody      int64                     // largest request body in bytes; default 10 MiB
	MaxWait      time.Duration             // longest ?wait=; default 5m
	Drain        time.Duration             // how long requests in flight may go on after a stop; default 10s
	Dashboard    dashboard.Mode            // default ReadOnly
	DashboardKey openai.Secret             // password or bearer token for the dashboard; empty: open
	Jobs         tasks.Config              // what a submission gets and may ask for
	Upstreams    []string                  // names that jobs may give; the first is the default
	Breakers     map[string]breaker.Config // of each upstream, as the workers have them; default breaker's
	Version      string
	Volatile     bool        // Redis keeps nothing over a restart, and /healthz says so
	Full         func() bool // whether Redis has no room for new jobs; default: never
}

const (
	defaultMaxBody = 10 << 20
	defaultMaxWait = 5 * time.Minute
	defaultDrain   = 10 * time.Second

	// readHeaderTimeout and readTimeout end clients that send slowly on purpose or for want of a network.
	readHeaderTimeout = 10 * time.Second
	readTimeout       = time.Minute
	idleTimeout       = 2 * time.Minute
	maxHeader         = 64 << 10
	// queueTimeout bounds what a request may wait for Redis.
	queueTimeout = 2 * time.Second
)

// WithDefaults fills what is zero.
func (c Config) WithDefaults() Config {
	if c.MaxBody == 0 {
		c.MaxBody = defaultMaxBody
	}
	if c.MaxWait == 0 {
		c.MaxWait = defaultMaxWait
	}
	if c.Drain == 0 {
		c.Drain = defaultDrain
	}
	if c.Dashboard == "" {
		c.Dashboard = dashboard.ReadOnly
	}
	if c.Full == nil {
		c.Full = func() bool { return false }
	}
	c.Jobs = c.Jobs.WithDefaults()
	return c
}

// Validate joins every problem, each with its key.
func (c Config) Validate() error {
	var errs []error
	if c.MaxBody < 1024 || c.MaxBody > 1<<30 {
		errs = append(errs, fmt.Errorf("api.max_body: %d is not in 1024 to %d bytes", c.MaxBody, 1<<30))
	}
	if c.MaxWait < time.Second || c.MaxWait > time.Hour {
		errs = append(errs, fmt.Errorf("api.max_wait: %s is not in 1s to 1h", c.MaxWait))
	}
	if len(c.Upstreams) == 0 {
		errs = append(errs, errors.New("upstreams: none is configured"))
	}
	return errors.Join(errs...)
}

// Server answers HTTP requests.
type Server struct {
	cfg      Config
	queue    *tasks.Queue
	watcher  *tasks.Watcher
	verdicts map[string]verdicts // by upstream
	board    http.Handler        // nil: no dashboard
	log      *slog.Logger
	echo     *echo.Echo
	metrics  *metrics
	stopping context.Context //nolint:containedctx // ends when the server should: long polls answer then, and /readyz says so
	stop     context.CancelFunc
}

// New returns a server on a Redis client. cfg is completed and validated. It does not dial.
func New(cfg Config, rdb redis.UniversalClient, log *slog.Logger) (*Server, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err // its keys begin with api
	}
	watcher := tasks.NewWatcher(rdb, log)
	queue, err := tasks.NewQueue(rdb, cfg.Jobs, watcher, log)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, queue: queue, watcher: watcher, log: log, echo: echo.New(),
		metrics: newMetrics(tasks.NewCollector(rdb, log)),
	}
	if err := s.newVerdicts(rdb); err != nil {
		return nil, err
	}
	if cfg.Dashboard != dashboard.Off {
		if s.board, err = dashboard.New(rdb, cfg.Dashboard); err != nil {
			return nil, err
		}
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.echo.HideBanner, s.echo.HidePort = true, true
	s.echo.HTTPErrorHandler = s.writeError
	// Echo's own rule believes any X-Forwarded-For. This one believes the hops of private networks only.
	s.echo.IPExtractor = echo.ExtractIPFromXFFHeader()
	s.use()
	s.route()
	return s, nil
}

func (s *Server) use() {
	s.echo.Pre(cleanRequestID)
	s.echo.Use(
		middleware.RequestIDWithConfig(middleware.RequestIDConfig{Generator: uuid.NewString}),
		middleware.RequestLoggerWithConfig(middleware.RequestLoggerConfig{
			LogStatus: true, LogLatency: true, LogMethod: true, LogURIPath: true, LogRoutePath: true,
			LogRemoteIP: true, LogRequestID: true, LogContentLength: true, LogResponseSize: true,
			HandleError:   true, // so that the status in the log is the one the client gets
			LogError:      true,
			LogValuesFunc: s.logRequest,
		}),
		middleware.RecoverWithConfig(middleware.RecoverConfig{LogErrorFunc: s.logPanic, DisableStackAll: true}),
	)
}

func (s *Server) route() {
	v1 := s.echo.Group("/v1")
	v1.POST("/jobs", s.submit)
	v1.GET("/jobs", s.list)
	v1.GET("/jobs/:id", s.get)
	v1.DELETE("/jobs/:id", s.remove)
	v1.POST("/jobs/:id/cancel", s.cancel)
	v1.POST("/jobs/:id/retry", s.retry)
	v1.GET("/upstreams", s.upstreams)
	v1.POST("/upstreams/:name/:mode", s.override)

	s.echo.GET("/livez", s.live)
	s.echo.GET("/readyz", s.ready)
	s.echo.GET("/healthz", s.ready)
	s.echo.GET("/metrics", echo.WrapHandler(s.metrics.handler()))
	if s.board != nil {
		h := echo.WrapHandler(s.board)
		s.echo.Any("/dashboard", h, s.guardDashboard)
		s.echo.Any("/dashboard/*", h, s.guardDashboard)
	}
}

// Handler is the server as an http.Handler.
func (s *Server) Handler() http.Handler { return s.echo }

// Run serves on a listener until ctx ends, then lets requests in flight finish for at most Drain. Long
// polls are answered at once with the job as it stands.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watching errgroup.Group
	watching.Go(func() error { return s.watcher.Run(base) })
	err := s.serve(ctx, ln)
	stop()
	return errors.Join(err, watching.Wait())
}

func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: s.echo, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("api: %w", err)
	case <-ctx.Done():
	}
	s.stop()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
	defer cancel()
	err := srv.Shutdown(drain)
	if err != nil {
		_ = srv.Close() // what is left has had its time
		err = fmt.Errorf("api: requests still running after %s were cut", s.cfg.Drain)
	}
	if cause := <-failed; !errors.Is(cause, http.ErrServerClosed) {
		err = errors.Join(err, cause)
	}
	return err
}

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._:/+=-]{1,128}$`)

// cleanRequestID drops a client's request ID that does not look like one: it goes into logs and headers.
func cleanRequestID(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Request().Header
		if !requestIDForm.MatchString(h.Get(echo.HeaderXRequestID)) {
			h.Del(echo.HeaderXRequestID)
		}
		return next(c)
	}
}

func requestID(c echo.Context) string { return c.Response().Header().Get(echo.HeaderXRequestID) }

func (s *Server) logRequest(c echo.Context, v middleware.RequestLoggerValues) error {
	s.metrics.observe(v)
	level := slog.LevelInfo
	switch {
	case v.Status == http.StatusInsufficientStorage: // refused, as a client's mistake is; Redis' state is told elsewhere
	case isOperational(v.RoutePath) && (v.Status < http.StatusInternalServerError || v.Status == http.StatusServiceUnavailable):
		level = slog.LevelDebug // probes and scrapes would drown the rest; a server that is not ready has told the prober
	case v.Status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("request_id", v.RequestID), slog.String("method", v.Method), slog.String("path", v.URIPath),
		slog.Int("status", v.Status), slog.Int64("duration_ms", v.Latency.Milliseconds()), slog.String("remote", v.RemoteIP),
		slog.String("bytes_in", v.ContentLength), slog.Int64("bytes_out", v.ResponseSize),
	}
	if cause := causeOf(v.Error); cause != nil {
		attrs = append(attrs, slog.Any("error", cause))
	}
	s.log.LogAttrs(c.Request().Context(), level, "request", attrs...)
	return nil
}

func isOperational(route string) bool {
	switch route {
	case "/livez", "/readyz", "/healthz", "/metrics", "/dashboard", "/dashboard/*":
		return true
	default:
		return false
	}
}

func (s *Server) logPanic(c echo.Context, err error, stack []byte) error {
	s.log.LogAttrs(c.Request().Context(), slog.LevelError, "handler panicked", slog.String("request_id", requestID(c)),
		slog.Any("panic", err), slog.String("stack", string(stack)))
	return &Error{
		Status: http.StatusInternalServerError, Type: serverError, Code: "internal_error",
		Message: "Ferry failed on this request; its log has the cause under request ID " + requestID(c) + ".",
	}
}

// writeJSON answers with v. HTML escaping is off: a model's answer is not HTML, and & should stay &.
func writeJSON(c echo.Context, status int, v any) error {
	h := c.Response().Header()
	h.Set(echo.HeaderContentType, echo.MIMEApplicationJSON)
	h.Set("Cache-Control", "no-store")
	c.Response().WriteHeader(status)
	enc := json.NewEncoder(c.Response())
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// size writes a number of bytes as people do.
func size(n int64) string {
	if n >= 1<<20 && n%(1<<20) == 0 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n, 10) + " bytes"
}
