// Command ferry submits jobs to a Ferry server, waits for their answers and manages them.
//
// What a script wants to read (an ID, an answer, a table) goes to stdout; what a person wants to know
// beside it goes to stderr. So `ferry wait $(ferry submit "Hello")` prints an answer and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // the server, the network or the job failed
	exitUsage   = 2 // the command line, a file it names or the environment is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	env := Env{Ctx: ctx, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	os.Exit(run(env, os.Args[1:]))
}

// Env is the world outside. Every command's Run receives it.
type Env struct {
	Ctx    context.Context //nolint:containedctx // kong passes bound values, and this one lives as long as the process
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
}

// cli is the grammar of the command line.
type cli struct {
	Help helpFlag `short:"h" help:"Show help, also of one command."`

	Dev       DevCmd       `cmd:"" help:"Run the whole system in one process."`
	Sim       SimCmd       `cmd:"" help:"Run a simulated upstream."`
	Submit    SubmitCmd    `cmd:"" help:"Hand in a job and print its ID."`
	Get       GetCmd       `cmd:"" help:"Show a job as it is now."`
	Wait      WaitCmd      `cmd:"" help:"Wait for a job and print its answer."`
	List      ListCmd      `cmd:"" help:"List jobs, newest first."`
	Cancel    CancelCmd    `cmd:"" help:"End a job that has not ended."`
	Retry     RetryCmd     `cmd:"" help:"Queue an ended job without an answer once more."`
	Upstreams UpstreamsCmd `cmd:"" help:"Show the upstreams, or force the breaker of one."`
	Version   VersionCmd   `cmd:"" help:"Print the version."`
}

// usageError is a mistake of the caller: exit code 2.
type usageError struct{ error }

// Unwrap returns the mistake.
func (e usageError) Unwrap() error { return e.error }

// errHelp ends the parsing of a command line that asked for help, and got it.
var errHelp = errors.New("help was printed")

// helpFlag prints help. Kong's own calls os.Exit, which only main may.
type helpFlag bool

// BeforeReset runs before missing arguments would be noticed.
func (helpFlag) BeforeReset(ctx *kong.Context) error {
	if err := ctx.PrintUsage(false); err != nil {
		return err
	}
	return errHelp
}

// run executes one command line and returns the exit code.
func run(env Env, args []string) int {
	err := execute(env, args)
	if err == nil || errors.Is(err, errHelp) {
		return exitOK
	}
	fmt.Fprintln(env.Stderr, "ferry: "+explain(err))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// execute parses args and runs the command they name.
func execute(env Env, args []string) error {
	parser, err := kong.New(&cli{},
		kong.Name("ferry"),
		kong.Description("Ferry, a durable queue for calls to language models.\n\n"+
			"FERRY_URL is the server's address (default http://127.0.0.1:8080), FERRY_API_KEY the key it asks for."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.NoDefaultHelp(),
		kong.Writers(env.Stdout, env.Stderr),
		kong.Bind(env),
	)
	if err != nil {
		return fmt.Errorf("command line: %w", err)
	}
	command, err := parser.Parse(args)
	if err != nil {
		return misread(err)
	}
	return command.Run()
}

// misread makes kong's complaint a usageError that says where the help is.
func misread(err error) error {
	if errors.Is(err, errHelp) {
		return err
	}
	help := "ferry --help"
	if e, ok := errors.AsType[*kong.ParseError](err); ok && e.Context.Selected() != nil {
		help = "ferry " + e.Context.Selected().Name + " --help"
	}
	return usageError{fmt.Errorf("%w; see %q", err, help)}
}

// VersionCmd is `ferry version`.
type VersionCmd struct{}

// Run prints the module version, as the Go toolchain stamped it, and the toolchain's own.
func (VersionCmd) Run(env Env) error {
	version, toolchain := "(unknown)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version, toolchain = info.Main.Version, info.GoVersion
	}
	_, err := fmt.Fprintf(env.Stdout, "ferry %s %s\n", version, toolchain)
	return err
}
