//go:build unix

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var hundred tally
	for i := 100; i > 0; i-- {
		hundred.latencies = append(hundred.latencies, time.Duration(i)*time.Millisecond)
	}
	for part, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := hundred.quantile(part); got != want {
			t.Errorf("quantile(%v) = %v; want %v", part, got, want)
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		figures spread
		want    string
	}{
		{spread{3}, "3.0"},
		{spread{1, 2}, "1.5 (1.0–2.0)"},
		{spread{1, 2, 9}, "2.0 (1.0–9.0)"},
	} {
		if got := c.figures.show(1); got != c.want {
			t.Errorf("%v is shown as %q; want %q", c.figures, got, c.want)
		}
	}
}

// uniform are results in which every read takes the given time, by subject, and
// as much of the server's processor time.
func uniform(latencies ...time.Duration) results {
	r := results{}
	for _, audit := range audits {
		for _, n := range connections {
			for s, latency := range latencies {
				t := &tally{elapsed: 100 * latency, cpu: cpuTime{vault: 100 * latency}}
				for range 100 {
					t.latencies = append(t.latencies, latency)
				}
				r[cell{audit, n, s}] = t
			}
		}
	}
	return r
}

func TestReport(t *testing.T) {
	ms := time.Millisecond
	fast := uniform(1*ms, 4*ms, 2*ms, 1*ms, 1*ms)
	slow := uniform(1*ms, 3500*time.Microsecond, 2*ms, 1*ms, 1*ms)
	for _, c := range []struct {
		name string
		runs []results
		want []string
	}{
		{"a run that reaches all", []results{fast}, []string{
			"| 1 | off | 4.00 | 4.0 | 4.00 | 1.000 | 0.97 | 1.00 | 4.00 | reached |",
			"| 64 | KV v2, external plugin | 250 | 4.00 | 4.00 | 4000 | – |",
		}},
		{"runs of which the median misses one target", []results{slow, fast, slow}, []string{
			"| 1 | on | 3.50 (3.50–4.00) | 4.0 | 3.50 (3.50–4.00) | 1.000 (1.000–1.000) | 0.97 | 1.00 (1.00–1.00) | 3.50 (3.50–4.00) | missed |",
			"| 16 | on | 3.50 (3.50–4.00) | 3.0 | 3.50 (3.50–4.00) | 1.000 (1.000–1.000) | 0.97 | 1.00 (1.00–1.00) | 3.50 (3.50–4.00) | reached |",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := report(c.runs, "Here and now.\n")
			for _, want := range c.want {
				if !strings.Contains(got, want+"\n") {
					t.Errorf("the report lacks %s:\n%s", want, got)
				}
			}
		})
	}
}

func TestDocument(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, without := range []string{"", beginMark, endMark, endMark + beginMark} {
		write(without)
		if _, err := openDocument(file); err == nil {
			t.Errorf("%q has a place for tables", without)
		}
	}
	write("Before.\n" + beginMark + "old\n" + endMark + "After.\n")
	doc, err := openDocument(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.replace("new\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if want := "Before.\n" + beginMark + "\nnew\n\n" + endMark + "After.\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestProcessorTime(t *testing.T) {
	own := children(os.Getpid())
	if own == nil {
		if _, err := os.Stat("/proc/self/stat"); err == nil {
			t.Fatal("there is /proc, but nothing was found in it")
		}
		return // the columns stay empty
	}
	before := used(own[""])
	for deadline := time.Now().Add(10 * time.Second); used(own[""]) == before; {
		if time.Now().After(deadline) {
			t.Fatal("ten seconds of work take no processor time")
		}
	}
}
