//go:build unix

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// tables writes everything that was measured.
func (f *figures) tables(l language) string {
	var b strings.Builder
	answered, logins := measured(f.before)
	for _, audit := range audits {
		title := text{"\n### Reads and signatures, no audit device\n", "\n### 读取和签名，没有审计设备\n"}
		if audit {
			title = text{"\n### Reads and signatures, an audit device writes a file\n", "\n### 读取和签名，审计设备写文件\n"}
		}
		l.write(&b, title)
		l.requestsHead(&b, lookupTitle)
		for _, n := range connections {
			for _, s := range answered {
				c := cell{audit, n, s}
				f.requestsRow(&b, l, c, f.ratio(c, lookupSelf).show(2))
			}
		}
	}
	l.write(&b, text{"\n### Logins\n", "\n### 登录\n"})
	l.requestsHead(&b, text{"WeChat takes, ms", "微信耗时，毫秒"})
	for _, n := range append(slices.Clip(connections), crowd) {
		for _, s := range logins {
			takes := wechatTakes
			if n == crowd {
				takes = slowly
			}
			f.requestsRow(&b, l, cell{connections: n, subject: s}, fmt.Sprint(takes.Milliseconds()))
		}
	}
	return b.String()
}

// requestsHead begins a table of requests, with one more column.
func (l language) requestsHead(b *strings.Builder, more text) {
	l.head(b, 2, connectionsTitle, text{"request", "请求"}, text{"requests/s", "请求/秒"}, more, text{"p50, ms", "p50，毫秒"}, text{"p99, ms", "p99，毫秒"},
		text{"CPU of Vault, µs", "Vault 的 CPU，微秒"}, text{"CPU of the plugin, µs", "插件的 CPU，微秒"})
}

func (f *figures) requestsRow(b *strings.Builder, l language, c cell, more string) {
	// Without /proc no time is known to have passed, and without a plugin none does.
	processor := func(used func(*tally) time.Duration) string {
		if c.subject == direct || used(f.runs[0][c]) == 0 {
			return "–"
		}
		return f.of(c, func(t *tally) float64 { return t.perRequest(used(t)) }).show(0)
	}
	row(b, fmt.Sprint(c.connections), subjects[c.subject].name[l],
		f.of(c, (*tally).rate).show(0), more,
		f.of(c, (*tally).p50).show(2), f.of(c, (*tally).p99).show(2),
		processor(func(t *tally) time.Duration { return t.cpu.vault }),
		processor(func(t *tally) time.Duration { return t.cpu.plugin }))
}
