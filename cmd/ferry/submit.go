package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ferry-queue/ferry/client"
)

// SubmitCmd is `ferry submit`.
type SubmitCmd struct {
	serverFlags

	Prompt string `arg:"" optional:"" help:"Text for the model."`
	File   string `short:"f" placeholder:"FILE" help:"Send the JSON request in this file instead of a prompt; - is stdin."`

	Kind     client.Kind     `enum:"chat,generate,embeddings" default:"chat" help:"Endpoint of the upstream: chat, generate or embeddings (default chat)."`
	Model    string          `help:"Model for the prompt (default gpt-4o-mini, or OpenAI's own for the other kinds)."`
	Upstream string          `help:"Name of the upstream (default: the server's first)."`
	Priority client.Priority `enum:"high,default,low" default:"default" help:"high, default or low."`

	Delay       time.Duration `help:"Start no sooner, such as 10s or 2h."`
	ExpiresIn   time.Duration `placeholder:"DURATION" help:"Give up when not served in this time (default 24h)."`
	MaxAttempts int           `placeholder:"N" help:"Attempts that may reach the upstream (default 25)."`

	IdempotencyKey string            `placeholder:"KEY" help:"Submitting again with this key finds the same job."`
	Metadata       map[string]string `mapsep:"none" placeholder:"K=V" help:"Note to come back with the job; may be repeated."`
	Wait           bool              `short:"w" help:"Wait for the end and print the answer."`
}

// Validate rejects what the server could not see or would misunderstand.
func (s *SubmitCmd) Validate() error {
	switch {
	case s.Prompt == "" && s.File == "":
		return errors.New(`give a prompt, or a request with --file`)
	case s.Prompt != "" && s.File != "":
		return errors.New("give a prompt or --file, not both")
	case s.File != "" && s.Model != "":
		return errors.New("--model is for a prompt; with --file the model stands in the request")
	case s.Delay < 0 || s.ExpiresIn < 0 || s.MaxAttempts < 0:
		return errors.New("--delay, --expires-in and --max-attempts cannot be negative")
	}
	return nil
}

// Run submits the job, and waits for it if asked to.
func (s *SubmitCmd) Run(env Env) error {
	request, err := s.request(env.Stdin)
	if err != nil {
		return usageError{err}
	}
	c, err := s.dial(env)
	if err != nil {
		return err
	}
	job, err := c.Submit(env.Ctx, client.SubmitRequest{
		Kind: s.Kind, Request: request, Upstream: s.Upstream, Priority: s.Priority, Delay: s.Delay, ExpiresIn: s.ExpiresIn,
		MaxAttempts: s.MaxAttempts, Metadata: s.Metadata, IdempotencyKey: s.IdempotencyKey,
	})
	if err != nil {
		return err
	}
	if s.Wait {
		fmt.Fprintf(env.Stderr, "%s is %s\n", job.ID, job.State)
		return s.await(env, c, job.ID, 0)
	}
	if s.JSON {
		return writeLine(env.Stdout, string(job.RawJSON()))
	}
	fmt.Fprintf(env.Stderr, "%s; wait for the answer with \"ferry wait %s\"\n", job.State, job.ID)
	return writeLine(env.Stdout, job.ID)
}

// request is the body for the upstream.
func (s *SubmitCmd) request(stdin io.Reader) (any, error) {
	if s.File == "" {
		return promptRequest(s.Kind, s.Model, s.Prompt), nil
	}
	body, err := readFile(s.File, stdin)
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(body, &object); err != nil || object == nil {
		return nil, fmt.Errorf("%s: a request is one JSON object: %w", s.File, jsonProblem(err))
	}
	return json.RawMessage(body), nil
}

// jsonProblem is err with the place of a syntax error.
func jsonProblem(err error) error {
	if err == nil {
		return errors.New("it is null")
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("%w at byte %d", err, syntax.Offset)
	}
	return err
}

// readFile reads a file, or stdin for "-".
func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// promptRequest makes a prompt the request of a kind. An empty model stands for the kind's usual one:
// a chat model cannot embed, nor does it complete plain text.
func promptRequest(kind client.Kind, model, prompt string) any {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	request := struct {
		Model    string    `json:"model"`
		Messages []message `json:"messages,omitempty"`
		Prompt   string    `json:"prompt,omitempty"`
		Input    string    `json:"input,omitempty"`
	}{Model: model}
	usual := "gpt-4o-mini"
	switch kind {
	case client.KindGenerate:
		usual, request.Prompt = "gpt-3.5-turbo-instruct", prompt
	case client.KindEmbeddings:
		usual, request.Input = "text-embedding-3-small", prompt
	default:
		request.Messages = []message{{Role: "user", Content: prompt}}
	}
	if model == "" {
		request.Model = usual
	}
	return request
}
