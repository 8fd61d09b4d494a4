package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"golang.org/x/sync/errgroup"

	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/config/apiconfig"
	"github.com/ferry-queue/ferry/internal/config/workerconfig"
	"github.com/ferry-queue/ferry/internal/dashboard"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/worker"
)

// DevCmd is `ferry dev`: the whole system in one process.
type DevCmd struct {
	Config    string `help:"Configuration file (default: ferry.yaml if it is there)." type:"path" placeholder:"FILE"`
	Addr      string `help:"Address of the API; port 0 takes a free one (default: 127.0.0.1:8080)." placeholder:"HOST:PORT"`
	AdminAddr string `help:"Address of the worker's health and metrics (default: 127.0.0.1:8081)." placeholder:"HOST:PORT"`
	SimAddr   string `default:"127.0.0.1:0" help:"Address of the simulated upstream." placeholder:"HOST:PORT"`
	RedisAddr string `default:"127.0.0.1:0" help:"Address of the private Redis." placeholder:"HOST:PORT"`
	RedisURL  string `help:"Use this Redis instead of a private one." placeholder:"URL"`
	Dir       string `default:".ferry" help:"Where the private Redis keeps its data, and the worker its answers while Redis is away." type:"path" placeholder:"DIR"`
	Memory    bool   `help:"Keep nothing: an in-process Redis even where redis-server is installed."`
	Chaos     string `help:"Faults of the simulated upstream, for example 503=0.3,timeout=0.1,latency=200ms." placeholder:"FAULTS"`
	Seed      uint64 `help:"Chooses which simulated requests fail."`
	LogLevel  string `default:"" enum:",debug,info,warn,error" help:"debug, info, warn or error (default: info)." placeholder:"LEVEL"`
}

// Run brings everything up, says where it is, and takes it down in the opposite order.
func (c DevCmd) Run(env Env) error {
	cfg, err := c.load(env)
	if err != nil {
		return usageError{err}
	}
	log := cfg.Log.Logger(env.Stderr)
	redisclient.LogTo(log)

	store, err := c.startRedis(env.Ctx, cfg)
	if err != nil {
		return err
	}
	defer store.stop()
	upstream := cfg.UpstreamNames()
	if len(upstream) == 0 {
		sim, err := startSim(env.Ctx, c.SimAddr, c.Chaos, c.Seed)
		if err != nil {
			return err
		}
		defer func() { _ = sim.stop() }() // it was only a simulation
		cfg.Upstreams = []config.Upstream{{Name: "simulated", BaseURL: sim.url + "/v1"}}
		upstream = []string{"simulated at " + sim.url + "/v1, faults: " + orNone(c.Chaos)}
	} else if c.Chaos != "" {
		return usageError{errors.New("--chaos is for the simulated upstream, but a real one is configured")}
	}
	return c.serve(env, cfg, store, strings.Join(upstream, ", "), log)
}

func (c DevCmd) load(env Env) (*config.Config, error) {
	return config.Load(config.Source{
		File: c.Config, Getenv: env.Getenv,
		Base: func(cfg *config.Config) {
			// It is one's own machine: nobody else may come in, and oneself may do everything.
			cfg.API.Addr, cfg.Worker.AdminAddr = "127.0.0.1:8080", "127.0.0.1:8081"
			cfg.Dashboard.Mode = string(dashboard.Full)
			cfg.Worker.SpoolDir = filepath.Join(c.Dir, "dev-spool") // not that of a worker with another Redis
		},
		Over: func(cfg *config.Config) {
			cfg.API.Addr = cmp.Or(c.Addr, cfg.API.Addr)
			cfg.Worker.AdminAddr = cmp.Or(c.AdminAddr, cfg.Worker.AdminAddr)
			cfg.Log.Level = cmp.Or(c.LogLevel, cfg.Log.Level)
			cfg.SetRedisURL(c.RedisURL)
		},
	})
}

// store is the Redis of a dev system.
type store struct {
	url     string
	what    string // for the banner
	durable bool
	foreign bool // not started by us: its settings are worth a look
	stop    func()
}

// startRedis takes the Redis that was asked for, or a private redis-server, or one in this process.
func (c DevCmd) startRedis(ctx context.Context, cfg *config.Config) (*store, error) {
	if cfg.RedisURLSet() {
		url := cfg.RedisURL.Reveal()
		return &store{url: url, what: "redis at " + redisclient.Display(url), durable: true, foreign: true, stop: func() {}}, nil
	}
	if c.Memory {
		return memoryRedis("asked for with --memory")
	}
	dir := filepath.Join(c.Dir, "redis")
	srv, err := redisserver.Start(ctx, redisserver.Config{Dir: dir, Addr: c.RedisAddr, AppendOnly: true})
	if errors.Is(err, redisserver.ErrNotInstalled) {
		return memoryRedis("redis-server is not installed")
	}
	if err != nil {
		return nil, err
	}
	return &store{
		url: srv.URL(), what: "redis-server at " + srv.Addr() + ", append-only file in " + dir, durable: true,
		stop: func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = srv.Stop(ctx) // it writes before it replies: nothing is lost however it ends
		},
	}, nil
}

// memoryRedis runs a Redis inside this process. Its clock for expiry stands still unless it is moved.
func memoryRedis(why string) (*store, error) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		return nil, fmt.Errorf("in-process redis: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var clock errgroup.Group
	clock.Go(func() error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				m.FastForward(time.Second)
			}
		}
	})
	return &store{
		url: "redis://" + m.Addr() + "/0", what: "in this process (" + why + ")",
		stop: func() {
			cancel()
			_ = clock.Wait() // returns nil
			m.Close()
		},
	}, nil
}

func (c DevCmd) serve(env Env, cfg *config.Config, st *store, upstream string, log *slog.Logger) error {
	cfg.SetRedisURL(st.url)
	rdb, health, err := redisclient.OpenWatched(st.url, redisclient.HealthConfig{FullAt: cfg.RedisFullAt}, log)
	if err != nil {
		return err
	}
	defer func() { _ = rdb.Close() }() // the process ends
	defer health.Close()
	acks, err := redisclient.OpenRerunning(st.url, env.Ctx.Done())
	if err != nil {
		return err
	}
	defer func() { _ = acks.Close() }() // the process ends
	if st.foreign {
		if err := redisclient.Report(env.Ctx, rdb, cfg.RedisNeeds(), log); err != nil {
			return err
		}
	}
	workerCfg, err := workerconfig.Of(cfg)
	if err != nil {
		return usageError{err}
	}
	workerCfg.RedisAway = health.Away
	w, err := worker.New(workerCfg, rdb, acks, log)
	if err != nil {
		return err
	}
	apiCfg := apiconfig.Of(cfg)
	apiCfg.Volatile, apiCfg.Full = !st.durable, health.Full
	srv, err := api.New(apiCfg, rdb, log)
	if err != nil {
		return usageError{err} // it dials nothing: only settings can be wrong
	}
	apiLn, err := (&net.ListenConfig{}).Listen(env.Ctx, "tcp", cfg.API.Addr)
	if err != nil {
		return fmt.Errorf("--addr: %w", err)
	}
	adminLn, err := (&net.ListenConfig{}).Listen(env.Ctx, "tcp", cfg.Worker.AdminAddr)
	if err != nil {
		_ = apiLn.Close() // nobody has connected yet
		return fmt.Errorf("--admin-addr: %w", err)
	}
	group, ctx := errgroup.WithContext(env.Ctx)
	group.Go(func() error { return srv.Run(ctx, apiLn) })
	group.Go(func() error { return w.Run(ctx, adminLn) })
	banner(env, st, apiLn.Addr().String(), adminLn.Addr().String(), upstream)
	return group.Wait()
}

func banner(env Env, st *store, apiAddr, adminAddr, upstream string) {
	base := "http://" + apiAddr
	durable := "Jobs survive a restart."
	if !st.durable {
		durable = "WARNING: NOT DURABLE. Jobs are gone when this process ends. Install redis-server to keep them."
	}
	fmt.Fprintf(env.Stdout, `ferry %[1]s

  API        %[2]s/v1/jobs
  dashboard  %[2]s/dashboard
  metrics    %[2]s/metrics and http://%[3]s/metrics
  Redis      %[4]s
  upstream   %[5]s
             (set OPENAI_API_KEY, or OPENAI_BASE_URL for another server, to use a real one)

%[6]s

Hand in a job, then wait for its answer:

  curl -s %[2]s/v1/jobs -d '{"kind":"chat","request":{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}}'
  curl -s '%[2]s/v1/jobs/JOB_ID?wait=30s'

Ctrl-C stops everything.
`, config.Version(), base, adminAddr, st.what, upstream, durable)
}
