//go:build unix

package main

import (
	"bufio"
	"math"
	"net"
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
		{spread{1, math.Inf(1)}, "–"},
		{spread{math.NaN(), 1}, "–"},
	} {
		if got := c.figures.show(1); got != c.want {
			t.Errorf("%v is shown as %q; want %q", c.figures, got, c.want)
		}
	}
}

// uniform is a run in which every request takes the same time, by subject, and as
// much of the server's processor time; all that is not named takes a millisecond.
func uniform(latencies map[int]time.Duration) results {
	r := results{}
	for s := range subjects {
		latency := time.Millisecond
		if l, named := latencies[s]; named {
			latency = l
		}
		for _, audit := range audits {
			for _, n := range append([]int{crowd}, connections...) {
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

func TestReports(t *testing.T) {
	const ms = time.Millisecond
	good := uniform(map[int]time.Duration{externalKV: 4 * ms, signWrite: 2 * ms, transit: 500 * time.Microsecond, login: 22 * ms, direct: 20500 * time.Microsecond})
	bad := uniform(map[int]time.Duration{floor: 800 * time.Microsecond, signRead: 1250 * time.Microsecond, login: 23 * ms, direct: 20500 * time.Microsecond, before: 900 * time.Microsecond})
	for _, c := range []struct {
		name    string
		figures figures
		want    []string // for every language, whatever the words
		english []string
	}{
		{"a run that reaches all", figures{runs: []results{good}, inFlight: crowd}, []string{
			"| 1,000 | 1,000 |\n", "| 500 | 500 |\n", "4.2",
		}, []string{
			"| 1 | off | 1.000 | 1.00 | reached | 1.00 | 1.00 | 4.00 |",
			"| 64 | on | 1.000 | 0.95 | reached | 1.00 | 0.500 | 0.25 |",
			"| 16 | 1.50 | 2.00 | reached |",
			"256 logins were in flight at a time, at least 256: reached.",
			"| 64 | KV v2, external plugin, by read | 250 | 0.25 | 4.00 | 4.00 | 4000 | – |",
			"| 256 | the call of WeChat, made directly | 49 | 500 | 20.50 | 20.50 | – | – |",
			"takes 1.00 ms and a signature by read 1.00 ms. A login takes 1.5 ms longer",
		}},
		{"runs of which the median misses all", figures{runs: []results{bad, good, bad}, inFlight: crowd - 1, before: true}, nil, []string{
			"| 1 | off | 0.800 (0.800–1.000) | 1.00 | missed | 1.00 (1.00–1.00) | 1.25 (1.00–1.25) | 1.00 (1.00–4.00) |",
			"| 64 | on | 0.800 (0.800–1.000) | 0.95 | missed |",
			"| 16 | 2.50 (1.50–2.50) | 2.00 | missed |",
			"255 logins were in flight at a time, at least 256: missed.",
			"| 16 | on | 0.900 (0.900–1.000) | 0.98 | missed |",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, l := range []language{english, chinese} {
				parts := c.figures.parts(text{"Here and now.\n", "此时此地。\n"}, l)
				got := parts["summary"] + parts["tables"]
				want := c.want
				if l == english {
					want = append(want, c.english...)
				}
				for _, want := range want {
					if !strings.Contains(got, want) {
						t.Errorf("the report lacks %s:\n%s", want, got)
					}
				}
				if strings.Contains(got, "%!") || c.figures.before != strings.Contains(got, subjects[before].name[l]) {
					t.Errorf("a figure is missing, or a build that was not measured is there:\n%s", got)
				}
			}
		})
	}
}

func TestAMeasurementWithoutAnAnswerIsAGap(t *testing.T) {
	full, empty := uniform(nil), uniform(nil)
	empty[cell{true, 16, token}] = &tally{elapsed: time.Second}
	for want, runs := range map[bool][]results{false: {full}, true: {full, empty}} {
		if f := (figures{runs: runs}); f.gaps() != want {
			t.Errorf("gaps are %t; want %t", f.gaps(), want)
		}
	}
}

func TestAbout(t *testing.T) {
	for figure, want := range map[float64]string{0: "0", 42.4: "42", 99.6: "100", 994: "990", 5948: "5,900", 1234567: "1,200,000"} {
		if got := about(figure); got != want {
			t.Errorf("about %v is %s; want %s", figure, got, want)
		}
	}
}

func TestTheCodeOfALoginIsAnotherEachTime(t *testing.T) {
	p, err := startPlatform()
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	call, err := p.login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.baseURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	c := &conn{tcp: tcp, reader: bufio.NewReader(tcp)}
	for range 3 {
		if err := c.ask(call); err != nil { // looks for the user that the code is of
			t.Fatal(err)
		}
	}
	again, openID := call.next()
	for range 2 {
		err = c.ask(request{wire: again, expected: openID})
	}
	if err == nil {
		t.Error("a code is good twice")
	}
}

func TestPlannedTime(t *testing.T) {
	o := options{runs: 5, rounds: 4, slice: 300 * time.Millisecond}
	if got := o.planned(); got < 5*time.Minute || got > 11*time.Minute {
		t.Errorf("make bench takes %s", got)
	}
}

func TestDocument(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "doc.md")
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	summary, tables := beginMark("summary"), beginMark("tables")
	for _, without := range []string{"", summary + endMark, summary + tables + endMark, endMark + summary + tables, tables + endMark} {
		write(without)
		if _, err := openDocument(file); err == nil {
			t.Errorf("%q has a place for all parts", without)
		}
	}
	write("Before.\n" + summary + "old\n" + endMark + "Between.\n" + tables + endMark + "After.\n")
	doc, err := openDocument(file)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing changes
		if err := doc.replace(map[string]string{"summary": "short\n", "tables": "\nlong\n"}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if want := "Before.\n" + summary + "\nshort\n\n" + endMark + "Between.\n" + tables + "\nlong\n\n" + endMark + "After.\n"; err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if doc.language != english {
		t.Error("it is not English")
	}
	file = filepath.Join(dir, "doc.zh-CN.md")
	write(summary + endMark + tables + endMark)
	if doc, err := openDocument(file); err != nil || doc.language != chinese {
		t.Errorf("%+v, %v: not Chinese", doc, err)
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
