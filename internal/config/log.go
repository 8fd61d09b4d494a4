package config

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"

	"github.com/ferry-queue/ferry/internal/redisclient"
)

func (l Log) level() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return 0, fmt.Errorf("log.level: %q is not one of debug, info, warn, error", l.Level)
	}
	return level, nil
}

// Logger returns the logger an operator asked for, made quiet about a Redis that is away. l has been validated.
func (l Log) Logger(w io.Writer) *slog.Logger {
	level, _ := l.level() // valid: see Validate
	terminal := isTerminal(w)
	if l.Format == "json" || l.Format == "auto" && !terminal {
		return slog.New(redisclient.Quiet(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})))
	}
	return slog.New(redisclient.Quiet(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: "15:04:05.000", NoColor: !terminal})))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
