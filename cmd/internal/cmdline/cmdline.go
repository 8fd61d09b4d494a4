// Package cmdline is the command line of the server programs, which take the same flags in the same way.
package cmdline

import (
	"io"

	"github.com/alecthomas/kong"

	"github.com/ferry-queue/ferry/internal/config"
)

// Exit codes.
const (
	ExitOK      = 0
	ExitFailure = 1
	ExitUsage   = 2 // the command line or the configuration
)

// Flags are what every server program takes on its command line.
type Flags struct {
	Config   string           `help:"Configuration file (default: ferry.yaml if it is there)." type:"path" placeholder:"FILE"`
	RedisURL string           `help:"Redis to use." placeholder:"URL"`
	Version  kong.VersionFlag `help:"Print the version and exit."`
}

// Program is a server program that was started.
type Program struct {
	Name        string
	Description string
	Args        []string // without the program's own name
	Stdout      io.Writer
	Stderr      io.Writer
}

// Parse reads the command line into flags, a pointer to a struct with kong's tags. printed says that help or
// the version was asked for and printed: there is nothing more to do. The error names the flag.
func (p Program) Parse(flags any) (printed bool, err error) {
	parser, err := kong.New(flags, kong.Name(p.Name), kong.Description(p.Description), kong.Writers(p.Stdout, p.Stderr),
		kong.Vars{"version": config.Version()}, kong.Exit(func(int) { printed = true }))
	if err == nil {
		_, err = parser.Parse(p.Args)
	}
	if printed {
		return true, nil // what kong says about flags that are missing beside --help does not matter
	}
	return false, err
}
