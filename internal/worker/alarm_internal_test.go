package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ferry-queue/ferry/internal/httpx"
)

func TestAlarmTellsWhatOnlyAnOperatorCanMend(t *testing.T) {
	tests := []struct {
		class  httpx.Class
		reason string
		told   bool
	}{
		{httpx.Permanent, "tls_certificate", true},
		{httpx.Permanent, "tls_not_spoken", true},
		{httpx.Permanent, "dns_not_found", true},
		{httpx.Permanent, "http_401", true},
		{httpx.Permanent, "http_403", true},
		{httpx.Permanent, "insufficient_quota", true},
		{httpx.Permanent, "http_400", false},
		{httpx.Transient, "http_503", false},
		{httpx.Transient, "http_401", false}, // the upstream says x-should-retry
		{httpx.Refused, "breaker_open", false},
	}
	for _, tt := range tests {
		t.Run(tt.class.String()+" "+tt.reason, func(t *testing.T) {
			var log bytes.Buffer
			newAlarm("sim", slog.New(slog.NewTextHandler(&log, nil))).raise(t.Context(), &httpx.Error{Class: tt.class, Reason: tt.reason})
			line := log.String()
			if told := line != ""; told != tt.told {
				t.Errorf("told: %t, want %t: %s", told, tt.told, line)
			}
			if want := "level=ERROR msg=\"upstream needs an operator\" upstream=sim reason=" + tt.reason + " advice="; tt.told && !strings.Contains(line, want) {
				t.Errorf("the line is %q, want it to have %q", line, want)
			}
		})
	}
}

func TestAlarmRepeatsAReasonOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := newAlarm("sim", slog.New(slog.NewTextHandler(&log, nil)))
		raise := func(reason string) {
			a.raise(t.Context(), &httpx.Error{Class: httpx.Permanent, Reason: reason})
		}
		for range 100 {
			raise("http_401")
			raise("tls_certificate")
		}
		if lines := strings.Count(log.String(), "\n"); lines != 2 {
			t.Errorf("%d lines, want one for each reason:\n%s", lines, log.String())
		}
		time.Sleep(alarmEvery)
		raise("http_401")
		if lines := strings.Count(log.String(), "\n"); lines != 3 {
			t.Errorf("%d lines after a minute, want another:\n%s", lines, log.String())
		}
	})
}
