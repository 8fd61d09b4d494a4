package config_test

import (
	"fmt"

	"github.com/ferry-queue/ferry/internal/config"
)

func ExampleLoad() {
	environment := map[string]string{
		"OPENAI_BASE_URL": "http://127.0.0.1:11434/v1",
		"FERRY_RETENTION": "2h",
		"FERRY_LOG_LEVEL": "loud",
		"FERRY_DASHBOARD": "open",
	}
	source := config.Source{Getenv: func(name string) string { return environment[name] }}
	_, err := config.Load(source)
	fmt.Println(err)

	environment["FERRY_LOG_LEVEL"], environment["FERRY_DASHBOARD"] = "debug", "off"
	cfg, err := config.Load(source)
	fmt.Println(cfg.UpstreamNames(), cfg.Jobs.Retention, cfg.Log.Level, err)
	// Output:
	// dashboard.mode: "open" is not one of off, readonly, full
	// log.level: "loud" is not one of debug, info, warn, error
	// [openai] 2h0m0s debug <nil>
}
