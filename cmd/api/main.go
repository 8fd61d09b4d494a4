// Command api is Ferry's HTTP server: it accepts jobs, answers questions about them, and never talks to an
// upstream. Run as many as you like against one Redis.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/ferry-queue/ferry/cmd/internal/cmdline"
	"github.com/ferry-queue/ferry/internal/api"
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/config/apiconfig"
	"github.com/ferry-queue/ferry/internal/redisclient"
)

type flags struct {
	cmdline.Flags
	Addr string `help:"Address to listen on; port 0 takes a free one." placeholder:"HOST:PORT"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	var f flags
	program := cmdline.Program{Name: "api", Description: "Ferry's HTTP server.", Args: args, Stdout: stdout, Stderr: stderr}
	if printed, err := program.Parse(&f); printed {
		return cmdline.ExitOK
	} else if err != nil {
		fmt.Fprintln(stderr, "api:", err)
		return cmdline.ExitUsage
	}
	cfg, err := config.Load(config.Source{File: f.Config, Getenv: getenv, NoKeys: true, NeedUpstream: true, Over: func(c *config.Config) {
		if f.Addr != "" {
			c.API.Addr = f.Addr
		}
		c.SetRedisURL(f.RedisURL)
	}})
	if err == nil {
		err = apiconfig.Of(cfg).WithDefaults().Validate()
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return cmdline.ExitUsage
	}
	log := cfg.Log.Logger(stderr)
	if err := serve(ctx, cfg, log); err != nil {
		log.ErrorContext(ctx, "api stopped", slog.Any("error", err))
		return cmdline.ExitFailure
	}
	return cmdline.ExitOK
}

func serve(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	redisclient.LogTo(log)
	rdb, health, err := redisclient.OpenWatched(cfg.RedisURL.Reveal(), redisclient.HealthConfig{FullAt: cfg.RedisFullAt}, log)
	if err != nil {
		return err
	}
	defer func() { _ = rdb.Close() }() // the process ends
	defer health.Close()
	if err := redisclient.Report(ctx, rdb, cfg.RedisNeeds(), log); err != nil {
		return err
	}
	apiCfg := apiconfig.Of(cfg)
	apiCfg.Full = health.Full
	srv, err := api.New(apiCfg, rdb, log)
	if err != nil {
		return err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.API.Addr)
	if err != nil {
		return fmt.Errorf("api.addr: %w", err)
	}
	log.InfoContext(ctx, "api listens", slog.String("addr", ln.Addr().String()), slog.String("redis", redisclient.Display(cfg.RedisURL.Reveal())),
		slog.Any("upstreams", cfg.UpstreamNames()), slog.String("version", config.Version()))
	return srv.Run(ctx, ln)
}
