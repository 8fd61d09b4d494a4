package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ferry-queue/ferry/client"
	"github.com/ferry-queue/ferry/internal/redisserver"
	"github.com/ferry-queue/ferry/internal/redisserver/redistest"
)

// What must not be found. The upstream's key has no form that a pattern would know.
const (
	upstreamKey   = "opaque.UPSTREAM+hunter2=="
	dashboardKey  = "opaque-DASHBOARD-hunter2"
	redisPassword = "opaque-REDIS-hunter2"
	sealingKey    = "opaque-SEALING-hunter2-32-bytes!"
)

// What jobs say and are told, in places of their own, so that a find says what it is.
const (
	promptText = "my private PROMPT"
	answerText = "your private ANSWER"
)

// secretsConfig has everything that is secret in a file or a variable, and logs all there is.
const secretsConfig = `
api: {addr: "127.0.0.1:0"}
worker: {admin_addr: "127.0.0.1:0"}
log: {level: debug, format: json}
jobs: {backoff: {base: 50ms, max: 100ms}}
dashboard: {mode: full}
upstreams:
  - name: sim
    base_url: %s
    api_key_file: upstream.key
    policies: {chat: {max_attempts: 1}}
`

// TestNoSecretIsFoundAnywhere lets jobs end in every way, with an upstream that repeats all it is told, and then looks at
// everything that is kept, logged or shown.
func TestNoSecretIsFoundAnywhere(t *testing.T) {
	t.Parallel() // no figures
	t.Run("encrypted", func(t *testing.T) {
		s := startSecretive(t, "encryption: {keys: [{id: k1, key_env: SEALING_KEY}]}\n")
		kept, shown := s.everything(t)
		kept["answer on disk"] = s.spooled(t)
		for place, text := range kept {
			lacks(t, place, text, upstreamKey, dashboardKey, redisPassword, sealingKey, promptText, answerText, "PROMPT", "ANSWER")
		}
		for place, text := range shown {
			lacks(t, place, text, upstreamKey, dashboardKey, redisPassword, sealingKey)
		}
	})
	// This one shows too that the search above would have found what it looks for.
	t.Run("plain", func(t *testing.T) {
		s := startSecretive(t, "")
		kept, shown := s.everything(t)
		spooled := s.spooled(t)
		for place, text := range kept {
			lacks(t, place, text, upstreamKey, dashboardKey, redisPassword, sealingKey)
			if !strings.HasPrefix(place, "key ferry job") && !strings.HasPrefix(place, "file ") {
				lacks(t, place, text, promptText, answerText)
			}
		}
		for place, text := range shown {
			lacks(t, place, text, upstreamKey, dashboardKey, redisPassword, sealingKey)
		}
		for _, place := range []string{"key ferry job", "file appendonlydir"} {
			if text := kept[place]; !bytes.Contains(text, []byte(promptText)) || !bytes.Contains(text, []byte(answerText)) {
				t.Errorf("%s: no prompt or answer is found without encryption: the search is blind", place)
			}
		}
		lacks(t, "answer on disk", spooled, upstreamKey, dashboardKey, redisPassword, sealingKey, promptText)
		if !bytes.Contains(spooled, []byte(answerText)) {
			t.Error("no answer is found on disk without encryption: the search is blind")
		}
		if !bytes.Contains(shown["jobs"], []byte(promptText)) {
			t.Error("the errors of jobs do not show what the upstream said")
		}
	})
}

func lacks(t *testing.T, place string, text []byte, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		for form, forbidden := range map[string]string{
			"itself": secret, "as base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="),
			"as hexadecimal": hex.EncodeToString([]byte(secret)), "in a URL": url.QueryEscape(secret),
		} {
			if at := bytes.Index(text, []byte(forbidden)); at >= 0 {
				t.Errorf("%s holds %q %s: ...%q...", place, secret, form, text[max(0, at-100):min(len(text), at+150)])
				break
			}
		}
	}
}

// secretive is a system whose jobs have all ended.
type secretive struct {
	*system
	rdb     *redis.Client
	dir     string // of Redis
	jobs    []*client.Job
	release chan struct{} // closed: the upstream answers the job that asks it to wait
}

func startSecretive(t *testing.T, encryption string) *secretive {
	t.Helper()
	needProcesses(t)
	s := &secretive{
		system: &system{t: t, dir: t.TempDir(), http: &http.Client{}, turn: new(atomic.Uint64)}, dir: t.TempDir(), release: make(chan struct{}),
	}
	upstream := httptest.NewServer(parrot(s.release))
	t.Cleanup(upstream.Close)
	server := redistest.Start(t, func(c *redisserver.Config) { c.Dir = s.dir })
	s.redis = server
	s.rdb = redis.NewClient(&redis.Options{Addr: server.Addr(), Password: redisPassword})
	t.Cleanup(func() { _ = s.rdb.Close() })
	open := redis.NewClient(&redis.Options{Addr: server.Addr()})
	if err := open.ConfigSet(t.Context(), "requirepass", redisPassword).Err(); err != nil {
		t.Fatal(err)
	}
	_ = open.Close()
	s.env = []string{
		"FERRY_REDIS_URL=redis://:" + redisPassword + "@" + server.Addr(), "FERRY_DASHBOARD_KEY=" + dashboardKey,
		"SEALING_KEY=" + base64.StdEncoding.EncodeToString([]byte(sealingKey)),
	}
	s.write("ferry.yaml", fmt.Sprintf(secretsConfig, upstream.URL)+encryption)
	s.write("upstream.key", upstreamKey+"\n")
	s.startAPI()
	s.startWorker()
	s.connect("http://" + s.apis[0].await(t, apiAddress))
	s.live()
	return s
}

func (s *secretive) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.system.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// parrot is an upstream that repeats the key and the prompt wherever it can. The prompt says how it answers.
func parrot(release <-chan struct{}) http.Handler {
	var asked atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			Messages []struct{ Content string }
		}
		_ = json.NewDecoder(r.Body).Decode(&request) // the API has looked at it
		prompt := request.Messages[0].Content
		repeat := func(status int) {
			said := fmt.Sprintf("%q with key %s", prompt, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
			w.Header().Set("X-Said", said)
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": "no: " + said, "type": said, "code": said, "param": said}})
		}
		switch {
		case strings.HasSuffix(prompt, "refuse"):
			repeat(http.StatusUnauthorized)
		case strings.HasSuffix(prompt, "fail"), strings.HasSuffix(prompt, "fail once") && asked.Add(1) == 1:
			repeat(http.StatusInternalServerError)
		case strings.HasSuffix(prompt, "hang"):
			<-r.Context().Done()
		case strings.HasSuffix(prompt, "answer late"):
			select {
			case <-release:
			case <-r.Context().Done():
			}
			fallthrough
		default:
			fmt.Fprintf(w, `{"choices":[{"message":{"content":%q}}]}`, answerText)
		}
	})
}

// live hands in a job for each way to end, and one that waits, and returns when they have.
func (s *secretive) live() {
	s.t.Helper()
	submit := func(what string) *client.Job {
		r := chat(promptText+": "+what, "")
		r.IdempotencyKey, r.MaxAttempts = "key for "+what, 3
		return s.submit(r)
	}
	late := chat(promptText+": fail", "")
	late.ExpiresIn, late.MaxAttempts = 2*time.Second, 1000
	waits := chat(promptText+": wait", "")
	waits.Delay = time.Hour
	hangs := submit("hang")
	s.jobs = []*client.Job{submit("answer"), submit("refuse"), submit("fail"), submit("fail once"), s.submit(late)}
	s.awaitState(hangs.ID, client.StateRunning)
	if _, err := s.client().Cancel(s.t.Context(), hangs.ID); err != nil {
		s.t.Fatal(err)
	}
	s.jobs = append(s.waitAll(s.jobs, time.Minute), s.wait(hangs, time.Minute), s.submit(waits))
	for i, want := range []client.State{client.StateSucceeded, client.StateFailed, client.StateFailed, client.StateSucceeded, client.StateExpired, client.StateCanceled, client.StateQueued} {
		wantState(s.t, s.jobs[i:i+1], want)
	}
}

// everything is all that Ferry keeps or writes for itself, and all that it shows to who may see it, by place.
func (s *secretive) everything(t *testing.T) (kept, shown map[string][]byte) {
	t.Helper()
	kept, shown = map[string][]byte{}, map[string][]byte{}
	s.readRedis(t, kept)
	s.readFiles(t, kept)
	for _, p := range slices.Concat(s.apis, s.workers) {
		kept["log of "+p.name] = []byte(p.output())
	}
	admin := "http://" + s.workers[0].await(t, workerAddress)
	for _, address := range []string{s.urls[0] + "/metrics", s.urls[0] + "/readyz?verbose", admin + "/metrics", admin + "/readyz", s.urls[0] + "/v1/upstreams"} {
		kept[address] = s.page(t, address)
	}
	for _, path := range []string{
		"/queues", "/redis_info", "/servers", "/schedulers", "/queues/sim:default", "/queues/sim:default/active_tasks", "/queues/sim:default/pending_tasks",
		"/queues/sim:default/scheduled_tasks", "/queues/sim:default/retry_tasks", "/queues/sim:default/archived_tasks", "/queues/sim:default/completed_tasks",
	} {
		kept["dashboard "+path] = s.page(t, s.urls[0]+"/dashboard/api"+path)
	}
	for _, job := range s.jobs {
		path := "/queues/sim:default/tasks/" + job.ID
		if page, ok := s.maybe(t, s.urls[0]+"/dashboard/api"+path); ok { // asynq has forgotten some
			kept["dashboard "+path] = page
		}
		shown["jobs"] = append(shown["jobs"], s.page(t, s.urls[0]+"/v1/jobs/"+job.ID)...)
	}
	shown["list"] = s.page(t, s.urls[0]+"/v1/jobs")
	return kept, shown
}

// spooled takes Redis away while a job is answered, and returns what the worker has written to its own disk then.
func (s *secretive) spooled(t *testing.T) []byte {
	t.Helper()
	late := s.submit(chat(promptText+": answer late", ""))
	s.awaitState(late.ID, client.StateRunning)
	if err := s.redis.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(s.release)
	var found []string
	until(t, 30*time.Second, "the answer is on disk", func() (ok bool) {
		var err error
		if found, err = filepath.Glob(filepath.Join(s.system.dir, ".ferry", "spool", "*", "*.entry")); err != nil {
			t.Fatal(err)
		}
		return len(found) > 0
	})
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range slices.Concat(s.apis, s.workers) {
		text = append(text, p.output()...) // an outage has log lines of its own
	}
	return text
}

func (s *secretive) page(t *testing.T, address string) []byte {
	t.Helper()
	page, ok := s.maybe(t, address)
	if !ok {
		t.Errorf("%s: %s", address, page)
	}
	return page
}

func (s *secretive) maybe(t *testing.T, address string) (page []byte, ok bool) {
	t.Helper()
	header := http.Header{"Authorization": {"Bearer " + dashboardKey}}
	path, own := strings.CutPrefix(address, s.urls[0])
	if !own { // the worker's
		resp, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		return b.Bytes(), err == nil && resp.StatusCode == http.StatusOK
	}
	status, page := s.do(http.MethodGet, path, header, nil)
	return page, status == http.StatusOK
}

// readRedis reads every key as its type is read, and as it is dumped. All of Ferry's records are one place.
func (s *secretive) readRedis(t *testing.T, kept map[string][]byte) {
	t.Helper()
	keys := s.rdb.Scan(t.Context(), 0, "*", 1000).Iterator()
	for keys.Next(t.Context()) {
		key := keys.Val()
		place := "key " + key
		if strings.HasPrefix(key, "ferry:{") && strings.Contains(key, "}:job:") {
			place = "key ferry job"
		}
		args := map[string][]any{
			"string": {"GET", key}, "hash": {"HGETALL", key}, "list": {"LRANGE", key, 0, -1},
			"set": {"SMEMBERS", key}, "zset": {"ZRANGE", key, 0, -1}, "stream": {"XRANGE", key, "-", "+"},
		}[s.rdb.Type(t.Context(), key).Val()]
		value, err := s.rdb.Do(t.Context(), args...).Result()
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		kept[place] = fmt.Appendf(kept[place], "%s %v %s\n", key, value, s.rdb.Dump(t.Context(), key).Val())
	}
	if err := keys.Err(); err != nil {
		t.Fatal(err)
	}
}

// readFiles reads what Redis has written to its disk, and has it write all it knows first.
func (s *secretive) readFiles(t *testing.T, kept map[string][]byte) {
	t.Helper()
	if err := s.rdb.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(s.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		place := "file " + filepath.Base(filepath.Dir(name))
		if filepath.Dir(name) == s.dir {
			place = "file " + filepath.Base(name)
		}
		kept[place] = append(kept[place], text...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
