//go:build unix

package main

import (
	"fmt"
	"strings"
)

// What the engine is to reach: ratios of requests per second, and milliseconds.
const (
	tokenToFloor  = 1.0
	signToToken   = 0.95
	tokenToBefore = 0.98
	loginAdds     = 2.0
)

var (
	connectionsTitle = text{"connections", "连接数"}
	auditTitle       = text{"audit", "审计"}
	atLeastTitle     = text{"at least", "至少"}
	lookupTitle      = text{"to `lookup-self`", "与 `lookup-self` 之比"}
)

// verdict says whether a target is reached.
func (l language) verdict(reached bool) string {
	if reached {
		return text{"reached", "达到"}[l]
	}
	return text{"missed", "未达到"}[l]
}

// targets writes what the engine is to reach, and what it does.
func (f *figures) targets(l language) string {
	var b strings.Builder
	l.write(&b, text{
		"\n### What the engine is to reach\n\nRatios are of requests per second, within the same run.\n",
		"\n### 目标\n\n比值都是同一轮中每秒请求数之比。\n",
	})
	f.tokenTargets(&b, l)
	f.signTargets(&b, l)
	f.loginTargets(&b, l)
	if f.before {
		f.beforeTargets(&b, l)
	}
	return b.String()
}

// each calls do for every number of connections, without and with an audit device.
func each(subject int, do func(cell)) {
	for _, n := range connections {
		for _, audit := range audits {
			do(cell{audit, n, subject})
		}
	}
}

func (f *figures) tokenTargets(b *strings.Builder, l language) {
	l.write(b, text{
		"\n**A read of a cached token.** The floor is a plugin that only answers with a constant; `lookup-self` calls no plugin, and is the end of what any can reach.\n",
		"\n**读取缓存的 token**：空插件只返回一个常量；`lookup-self` 不经过任何插件，是所有插件的上限。\n",
	})
	l.head(b, 2, connectionsTitle, auditTitle, text{"to the floor", "与空插件之比"}, atLeastTitle, text{"", ""}, lookupTitle,
		text{"floor to `lookup-self`", "空插件与 `lookup-self` 之比"}, text{"to external KV v2", "与外部 KV v2 之比"})
	each(token, func(c cell) {
		toFloor, atFloor := f.ratio(c, floor), c
		atFloor.subject = floor
		row(b, fmt.Sprint(c.connections), l.onOff(c.audit), toFloor.show(3), fmt.Sprintf("%.2f", tokenToFloor), l.verdict(toFloor.median() >= tokenToFloor),
			f.ratio(c, lookupSelf).show(2), f.ratio(atFloor, lookupSelf).show(2), f.ratio(c, externalKV).show(2))
	})
}

func (f *figures) signTargets(b *strings.Builder, l language) {
	l.write(b, text{
		"\n**A signature.** By read it is one round trip from Vault to the plugin, by update two: Vault first asks whether it is one.\n",
		"\n**签名**：read 是 Vault 与插件之间的一次往返；update 是两次，因为 Vault 先要问这个操作是不是 update。\n",
	})
	l.head(b, 2, connectionsTitle, auditTitle, text{"by read, to the token's read", "read，与读取 token 之比"}, atLeastTitle, text{"", ""},
		lookupTitle, text{"by update, to the floor by update", "update，与空插件 update 之比"}, text{"by update, to transit `hmac`", "update，与 transit `hmac` 之比"})
	each(signRead, func(c cell) {
		toToken, write := f.ratio(c, token), c
		write.subject = signWrite
		row(b, fmt.Sprint(c.connections), l.onOff(c.audit), toToken.show(3), fmt.Sprintf("%.2f", signToToken), l.verdict(toToken.median() >= signToToken),
			f.ratio(c, lookupSelf).show(2), f.ratio(write, floorWrite).show(3), f.ratio(write, transit).show(2))
	})
}

func (f *figures) loginTargets(b *strings.Builder, l language) {
	l.write(b, text{
		"\n**A login**, at a WeChat that takes %d ms: what `code2session/` adds to the call made directly, at the median. A floor that makes the call of WeChat and checks nothing shows how much of it is Vault, and the way to a plugin and back.\n",
		"\n**登录**，微信耗时 %d 毫秒：`code2session/` 比直接调用多出的时间（中位数）。一个只管调用微信、什么都不检查的空插件，显示其中有多少属于 Vault 以及与插件之间的往返。\n",
	}, wechatTakes.Milliseconds())
	l.head(b, 1, connectionsTitle, text{"adds, ms", "多出，毫秒"}, text{"less than", "少于"}, text{"", ""}, text{"the floor adds, ms", "空插件多出，毫秒"})
	for _, n := range connections {
		adds := f.added(cell{connections: n, subject: login}, direct)
		row(b, fmt.Sprint(n), adds.show(2), fmt.Sprintf("%.2f", loginAdds), l.verdict(adds.median() < loginAdds),
			f.added(cell{connections: n, subject: floorLogin}, direct).show(2))
	}
	l.write(b, text{
		"\n%d connections at a WeChat that takes %d ms: %d logins were in flight at a time, at least %d: %s.\n",
		"\n%d 个连接，微信耗时 %d 毫秒：同时进行的登录最多 %d 个，目标至少 %d 个：%s。\n",
	}, crowd, slowly.Milliseconds(), f.inFlight, crowd, l.verdict(f.inFlight >= crowd))
}

func (f *figures) beforeTargets(b *strings.Builder, l language) {
	l.write(b, text{
		"\n**Compared with another build** of the engine, a read of a cached token:\n",
		"\n**与对照版本相比**，读取缓存的 token：\n",
	})
	l.head(b, 2, connectionsTitle, auditTitle, text{"to the build before", "与对照版本之比"}, atLeastTitle, text{"", ""})
	each(token, func(c cell) {
		toBefore := f.ratio(c, before)
		row(b, fmt.Sprint(c.connections), l.onOff(c.audit), toBefore.show(3), fmt.Sprintf("%.2f", tokenToBefore), l.verdict(toBefore.median() >= tokenToBefore))
	})
}
