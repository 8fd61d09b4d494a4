// Command worker takes jobs from the queue and carries them to their upstreams. Run as many as you like
// against one Redis. On SIGTERM it takes no more jobs, lets the calls in flight finish for worker.drain,
// and puts what is left back.
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
	"github.com/ferry-queue/ferry/internal/config"
	"github.com/ferry-queue/ferry/internal/config/workerconfig"
	"github.com/ferry-queue/ferry/internal/redisclient"
	"github.com/ferry-queue/ferry/internal/worker"
)

type flags struct {
	cmdline.Flags
	AdminAddr string `help:"Address for health and metrics; port 0 takes a free one." placeholder:"HOST:PORT"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	var f flags
	program := cmdline.Program{Name: "worker", Description: "Carries Ferry's jobs to their upstreams.", Args: args, Stdout: stdout, Stderr: stderr}
	if printed, err := program.Parse(&f); printed {
		return cmdline.ExitOK
	} else if err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return cmdline.ExitUsage
	}
	cfg, workerCfg, err := load(f, getenv)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return cmdline.ExitUsage
	}
	log := cfg.Log.Logger(stderr)
	if err := work(ctx, cfg, workerCfg, log); err != nil {
		log.ErrorContext(ctx, "worker stopped", slog.Any("error", err))
		return cmdline.ExitFailure
	}
	log.InfoContext(ctx, "worker has drained")
	return cmdline.ExitOK
}

func load(f flags, getenv func(string) string) (*config.Config, worker.Config, error) {
	cfg, err := config.Load(config.Source{File: f.Config, Getenv: getenv, NeedUpstream: true, Over: func(c *config.Config) {
		if f.AdminAddr != "" {
			c.Worker.AdminAddr = f.AdminAddr
		}
		c.SetRedisURL(f.RedisURL)
	}})
	if err != nil {
		return nil, worker.Config{}, err
	}
	workerCfg, err := workerconfig.Of(cfg)
	return cfg, workerCfg, err
}

func work(ctx context.Context, cfg *config.Config, workerCfg worker.Config, log *slog.Logger) error {
	redisclient.LogTo(log)
	rdb, health, err := redisclient.OpenWatched(cfg.RedisURL.Reveal(), redisclient.HealthConfig{FullAt: cfg.RedisFullAt}, log)
	if err != nil {
		return err
	}
	defer func() { _ = rdb.Close() }() // the process ends
	defer health.Close()
	acks, err := redisclient.OpenRerunning(cfg.RedisURL.Reveal(), ctx.Done())
	if err != nil {
		return err
	}
	defer func() { _ = acks.Close() }() // the process ends
	if err := redisclient.Report(ctx, rdb, redisclient.Needs{}, log); err != nil {
		return err
	}
	workerCfg.RedisAway = health.Away
	w, err := worker.New(workerCfg, rdb, acks, log)
	if err != nil {
		return err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Worker.AdminAddr)
	if err != nil {
		return fmt.Errorf("worker.admin_addr: %w", err)
	}
	log.InfoContext(ctx, "worker runs", slog.String("admin", ln.Addr().String()), slog.String("redis", redisclient.Display(cfg.RedisURL.Reveal())),
		slog.Any("upstreams", cfg.UpstreamNames()), slog.String("version", config.Version()))
	return w.Run(ctx, ln)
}
