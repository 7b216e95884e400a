//go:build unix

package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// conditions tells what was measured where and how.
func (v *vault) conditions(o options) (text, error) {
	engine, err := buildinfo.ReadFile(programs[enginePlugin])
	if err != nil {
		return text{}, err
	}
	kv, err := buildinfo.ReadFile(programs[kvPlugin])
	if err != nil {
		return text{}, err
	}
	model := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, found := strings.Cut(string(info), "model name\t: "); found {
			model, _, _ = strings.Cut(after, "\n")
		}
	}
	date := time.Now().UTC().Format(time.DateOnly)
	versions := []any{v.Host, sdkOf(engine), engine.GoVersion, kv.Main.Version, sdkOf(kv), kv.GoVersion}
	amount := []any{o.runs, o.rounds, o.slice}
	var both text
	for l, t := range []struct{ machine, versions, amount string }{
		{
			"%s, %s/%s, %d processors (%s).\n",
			"%s; this engine with SDK %s and %s; external KV %s with SDK %s and %s.\n",
			"Runs: %d, each of %d rounds with slices of %s. The figures are the medians of the runs, with their range in parentheses.\n",
		},
		{
			"%s，%s/%s，%d 个处理器（%s）。\n",
			"%s；本引擎用 SDK %s 和 %s；外部 KV %s 用 SDK %s 和 %s。\n",
			"共 %d 轮，每轮 %d 次，每次测 %s。数字是各轮的中位数，括号里是各轮的范围。\n",
		},
	} {
		both[l] = fmt.Sprintf(t.machine, date, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), model) +
			fmt.Sprintf(t.versions, versions...) + fmt.Sprintf(t.amount, amount...)
	}
	return both, nil
}

// sdkOf returns the version of Vault's SDK in a program.
func sdkOf(program *buildinfo.BuildInfo) string {
	for _, module := range program.Deps {
		if module.Path == "github.com/hashicorp/vault/sdk" {
			return module.Version
		}
	}
	return "none"
}
