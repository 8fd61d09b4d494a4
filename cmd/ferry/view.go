package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ferry-queue/ferry/client"
)

// view writes jobs and upstreams for people.
type view struct {
	now      time.Time
	terminal bool // stdout is one: control characters of others are kept from it
	color    bool
}

// newView looks at the environment: https://no-color.org and dumb terminals get no colours.
func newView(env Env) view {
	terminal := isTerminal(env.Stdout)
	return view{
		now:      time.Now(),
		terminal: terminal,
		color:    terminal && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb",
	}
}

// isTerminal takes every character device for a terminal. Of the others only /dev/null is common, and
// it does not mind.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// summary is a job in one line.
func (v view) summary(job *client.Job) string {
	s := clean(job.ID) + " is " + v.paint(colorOf(job.State), clean(string(job.State)))
	if job.State == client.StateSucceeded {
		s += " after " + count(job.Attempts, "attempt")
		if !job.FinishedAt.IsZero() && !job.CreatedAt.IsZero() {
			s += ", " + words(job.FinishedAt.Sub(job.CreatedAt)) + " in all"
		}
	}
	return s
}

// job is all there is to know about a job, in words.
func (v view) job(job *client.Job) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s\n", clean(job.ID), v.paint(colorOf(job.State), clean(string(job.State))))
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, clean(text))
		}
	}
	line("kind", string(job.Kind))
	line("model", job.Model)
	line("upstream", job.Upstream)
	line("priority", string(job.Priority))
	line("created", v.when(job.CreatedAt))
	line("started", v.when(job.StartedAt))
	line("finished", v.when(job.FinishedAt))
	if job.State.Terminal() {
		line("deleted", v.when(job.DeletesAt))
	} else {
		line("waits for", job.WaitingFor)
		line("due", v.when(job.RunAt))
		line("expires", v.when(job.ExpiresAt))
	}
	line("attempts", spent(job))
	line("metadata", pairs(job.Metadata))
	if job.Error != nil {
		line("error", failure(job.Error))
	}
	if len(job.Ledger) > 0 {
		b.WriteString("\n" + v.ledger(job.Ledger))
	}
	if job.State == client.StateSucceeded {
		b.WriteString("\n" + v.answer(job) + "\n")
	}
	return b.String()
}

// ledger is a table of attempts.
func (v view) ledger(attempts []client.Attempt) string {
	rows := [][]string{{"#", "STARTED", "TOOK", "STATUS", "CLASS", "REASON", "WAIT AFTER"}}
	for _, a := range attempts {
		status := "-"
		if a.Status != 0 {
			status = strconv.Itoa(a.Status)
		}
		rows = append(rows, []string{
			strconv.Itoa(a.N), v.when(a.StartedAt), a.Duration.String(), status, a.Class, reason(a), waitAfter(a),
		})
	}
	return table(rows, nil)
}

// reason is why an attempt failed, and what else is remarkable about it.
func reason(a client.Attempt) string {
	notes := []string{}
	if a.Reason != "" {
		notes = append(notes, a.Reason)
	}
	if !a.Sent {
		notes = append(notes, "not sent")
	}
	if a.OutcomeUnknown {
		notes = append(notes, "outcome unknown")
	}
	return strings.Join(notes, ", ")
}

// waitAfter is the wait between an attempt and the next, and what it is for.
func waitAfter(a client.Attempt) string {
	switch {
	case a.Wait == 0:
		return ""
	case a.WaitReason == "":
		return a.Wait.String()
	}
	return fmt.Sprintf("%s (%s)", a.Wait, a.WaitReason)
}

// list is a table of jobs.
func (v view) list(jobs []*client.Job) string {
	rows := [][]string{{"ID", "STATE", "KIND", "MODEL", "UPSTREAM", "ATTEMPTS", "CREATED"}}
	for _, job := range jobs {
		rows = append(rows, []string{
			job.ID, string(job.State), string(job.Kind), job.Model, job.Upstream,
			fmt.Sprintf("%d/%d", job.Attempts, job.MaxAttempts), v.when(job.CreatedAt),
		})
	}
	return table(rows, func(row, column int, padded string) string {
		if row == 0 || column != 1 {
			return padded
		}
		return v.paint(colorOf(jobs[row-1].State), padded)
	})
}

// table aligns the columns of rows. paint, if there is one, may colour a cell once it has its width.
// Empty cells show a dash, so that awk counts columns right; no row of ours ends in blanks.
func table(rows [][]string, paint func(row, column int, padded string) string) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
			if row[i] == "" {
				row[i] = "-"
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var b strings.Builder
	for r, row := range rows {
		for i, cell := range row {
			if i < len(row)-1 {
				cell += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			}
			if paint != nil {
				cell = paint(r, i, cell)
			}
			b.WriteString(cell)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// answer is what the model said: the text of each choice, how many embeddings there are, or the JSON
// as it came when it is neither.
func (v view) answer(job *client.Job) string {
	text, ok := embeddings(job.Result)
	if job.Kind != client.KindEmbeddings {
		text, ok = choices(job.Result)
	}
	if !ok {
		var indented bytes.Buffer
		if json.Indent(&indented, job.Result, "", "  ") != nil {
			return "(no answer is stored)"
		}
		text = indented.String()
	}
	if v.terminal {
		return strings.Map(printable, text)
	}
	return text
}

// choices is the text of a chat or text completion. It reports false if a choice has none, such as
// one that calls a tool.
func choices(result json.RawMessage) (string, bool) {
	var completion struct {
		Choices []struct {
			Text    string
			Message struct{ Content, Refusal string }
		}
	}
	if json.Unmarshal(result, &completion) != nil {
		return "", false
	}
	var texts []string
	for _, c := range completion.Choices {
		text := c.Text + c.Message.Content + c.Message.Refusal // at most one of them is set
		if text == "" {
			return "", false
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "\n\n"), len(texts) > 0
}

// embeddings says how many vectors there are: nobody reads them in a terminal.
func embeddings(result json.RawMessage) (string, bool) {
	var list struct {
		Data []struct{ Embedding json.RawMessage }
	}
	if json.Unmarshal(result, &list) != nil || len(list.Data) == 0 {
		return "", false
	}
	text := count(len(list.Data), "embedding")
	var vector []float64
	if json.Unmarshal(list.Data[0].Embedding, &vector) == nil { // else base64
		text += " of " + count(len(vector), "number")
	}
	return text + "; --json prints them", true
}

// spent is what a job has used up.
func spent(job *client.Job) string {
	s := fmt.Sprintf("%d of %d", job.Attempts, job.MaxAttempts)
	if job.Snoozes > 0 {
		s += ", " + count(job.Snoozes, "snooze")
	}
	if job.Crashes > 0 {
		s += ", " + count(job.Crashes, "crash")
	}
	return s
}

// failure is a job's error in one line: status, class, code, message, as far as they are known.
func failure(e *client.JobError) string {
	var parts []string
	if e.Status != 0 {
		parts = append(parts, strconv.Itoa(e.Status))
	}
	for _, s := range []string{e.Class, e.Code} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if len(parts) == 0 {
		return e.Message
	}
	return strings.Join(parts, " ") + ": " + e.Message
}

// pairs is metadata in the order of its keys.
func pairs(m map[string]string) string {
	var s []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, k+"="+m[k])
	}
	return strings.Join(s, ", ")
}

// when is a time as seen from now, and empty for none.
func (v view) when(t time.Time) string {
	d := v.now.Sub(t)
	switch {
	case t.IsZero():
		return ""
	case d.Abs() < time.Second:
		return "now"
	case d < 0:
		return "in " + words(-d)
	}
	return words(d) + " ago"
}

// words is a duration in one unit, as exact as a person would say it.
func words(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		if d = d.Round(100 * time.Millisecond); d == time.Second {
			return "1 second"
		}
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " seconds"
	case d < 90*time.Second:
		return count(int(d.Round(time.Second)/time.Second), "second")
	case d < 90*time.Minute:
		return count(int(d.Round(time.Minute)/time.Minute), "minute")
	case d < 36*time.Hour:
		return count(int(d.Round(time.Hour)/time.Hour), "hour")
	}
	return count(int(d.Round(24*time.Hour)/(24*time.Hour)), "day")
}

// count is a number of things.
func count(n int, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case strings.HasSuffix(thing, "sh"):
		return fmt.Sprintf("%d %ses", n, thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// The colours: ANSI's numbers for them.
const (
	plain  = ""
	red    = "31"
	green  = "32"
	yellow = "33"
)

// colorOf says at a glance how a job fares.
func colorOf(state client.State) string {
	switch state {
	case client.StateSucceeded:
		return green
	case client.StateFailed, client.StateExpired:
		return red
	case client.StateSnoozed, client.StateRetrying:
		return yellow
	default:
		return plain
	}
}

// paint colours text where stdout can show it.
func (v view) paint(color, text string) string {
	if !v.color || color == plain {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// clean makes text of others one line that cannot steer a terminal.
func clean(s string) string {
	return strings.Map(printable, strings.Join(strings.Fields(s), " "))
}

// printable drops control characters other than tab and line feed.
func printable(r rune) rune {
	if unicode.IsControl(r) && r != '\n' && r != '\t' {
		return -1
	}
	return r
}

// writeLine writes text and a line end. Its error matters: an answer lost on a full disk is lost.
func writeLine(w io.Writer, text string) error {
	_, err := io.WriteString(w, strings.TrimSuffix(text, "\n")+"\n")
	return err
}
