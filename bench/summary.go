//go:build unix

package main

import (
	"runtime"
	"slices"
	"strings"
)

// Ten thousand clients that follow ttl, which is four minutes at most by default.
const (
	clients    = 10_000
	clientsTTL = 240 // seconds
)

// parts are what is written into a document, by the names of its places.
func (f *figures) parts(conditions text, l language) map[string]string {
	return map[string]string{
		"summary": f.summary(l),
		"tables":  conditions[l] + f.targets(l) + f.tables(l),
	}
}

// summary begins with what a reader wants to know.
func (f *figures) summary(l language) string {
	busy := slices.Max(connections)
	rate := func(audit bool, s int) float64 {
		return f.of(cell{audit, busy, s}, (*tally).rate).median()
	}
	alone := func(s int) cell { return cell{connections: 1, subject: s} }
	needed := float64(clients) / clientsTTL

	var b strings.Builder
	l.write(&b, text{
		"What one Vault on %d processors answers in a second, with load and WeChat on the same processors (%d connections):\n",
		"一台 Vault（%d 个处理器，压测程序和模拟的微信也在同一台机器上，%d 个连接）每秒能响应：\n",
	}, runtime.NumCPU(), busy)
	l.head(&b, 1, text{"", ""}, text{"no audit device", "没有审计设备"}, text{"audit device writes a file", "审计设备写文件"})
	row(&b, text{"reads of a cached token, `token/`", "读取缓存的 token，`token/`"}[l], about(rate(false, token)), about(rate(true, token)))
	row(&b, text{"signatures by read, `sign/`", "签名（read），`sign/`"}[l], about(rate(false, signRead)), about(rate(true, signRead)))
	row(&b, text{"signatures by update", "签名（update）"}[l], about(rate(false, signWrite)), about(rate(true, signWrite)))
	row(&b, text{"logins, `code2session/`", "登录，`code2session/`"}[l], about(rate(false, login)), text{"not measured", "未测"}[l])
	b.WriteString("\n")
	l.write(&b, text{
		"- Ten thousand clients that read their token again after a `ttl` of %d s need %.0f reads a second: %.1f %% of the first figure.\n",
		"- 一万个客户端按 %d 秒的 `ttl` 重新读取 token，每秒需要 %.0f 次读取：相当于上面第一个数的 %.1f%%。\n",
	}, clientsTTL, needed, 100*needed/rate(false, token))
	l.write(&b, text{
		"- Alone on the server a read of a token takes %.2f ms and a signature by read %.2f ms. A login takes %.1f ms longer than the call of WeChat that it makes (medians).\n",
		"- 服务器空闲时，读取一次 token 耗时 %.2f 毫秒，一次签名（read）%.2f 毫秒。一次登录比直接调用微信多 %.1f 毫秒（均为中位数）。\n",
	}, f.of(alone(token), (*tally).p50).median(), f.of(alone(signRead), (*tally).p50).median(), f.added(alone(login), direct).median())
	l.write(&b, text{
		"- When WeChat is slow, of %[2]d logins sent at once a mount had %[1]d in flight.\n",
		"- 微信响应慢时，同时发起 %[2]d 个登录，一个挂载点同时处理了 %[1]d 个。\n",
	}, f.inFlight, crowd)
	return b.String()
}
