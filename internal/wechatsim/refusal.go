package wechatsim

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// errmsgs are the texts of the errcodes. {ip} and {ipv6} stand for the caller's
// address.
var errmsgs = map[int]string{
	-1:    "system error",
	40001: "invalid credential, access_token is invalid or not latest",
	40002: "invalid grant_type",
	40013: "invalid appid",
	40014: "invalid access_token",
	40029: "invalid code",
	40097: "invalid args",
	40125: "invalid appsecret",
	40163: "code been used",
	40164: "invalid ip {ip} ipv6 {ipv6}, not in whitelist",
	40226: "code blocked",
	40243: "appsecret is frozen",
	41001: "access_token missing",
	41002: "appid missing",
	41004: "appsecret missing",
	41008: "missing code",
	42001: "access_token expired",
	43001: "require GET method",
	43002: "require POST method",
	45009: "reach max api daily quota limit",
	45011: "api minute-quota reach limit, must slower, retry next minute",
	45035: "access clientip is not registered, not in ip-white-list, requestIP: {ip}",
	47001: "data format error",
	48001: "api unauthorized",
	48004: "api forbidden for irregularities",
	48006: "forbid to clear quota because of reaching the limit",
	50002: "user limited",
	50004: "account punished",
	61004: "access clientip is not registered, requestIP: {ip}",
	76001: "rid not found",
	76003: "could not query this rid for no permission",
	89501: "ip {ip} waits for the administrator to confirm",
	89503: "ip {ip} needs the administrator to confirm",
	89506: "ip {ip} was refused twice by the administrator, try again after 24 hours",
	89507: "ip {ip} was refused by the administrator, try again after 1 hour",
}

// traces are the ways in which an error text can name its call, other than by a
// rid; %s is a text that differs from call to call. All but the rid are not
// documented.
var traces = map[string]string{
	"hint":   " hint: [%s]",
	"req_id": ", hints: [ req_id: %s ]",
	"none":   "",
}

// refuse returns the answer for an errcode; s.mu is held. How the rid follows the
// text varies from answer to answer, as it does with WeChat; only the text that
// names an IP in documented words always has the documented form.
func (s *Sim) refuse(errcode int, ip string) answer {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	short := fmt.Sprintf("%08x", time.Now().Unix())
	long := fmt.Sprintf("%s-%x-%x", short, b[:4], b[4:])
	form, rid := " rid: ", long
	if errcode != 40164 {
		switch s.texts % 3 {
		case 1:
			form = ", rid: "
		case 2:
			form, rid = ", rid: ", short
		}
	}
	s.texts++
	ans := refusalOf(errcode, errmsg(errcode, ip)+form+rid)
	ans.rid = rid
	return ans
}

// refuseAs does the same with a trace in place of the rid; "" is a rid. s.mu is
// held.
func (s *Sim) refuseAs(trace string, errcode int, ip string) answer {
	form, other := traces[trace]
	if !other {
		return s.refuse(errcode, ip)
	}
	if strings.Contains(form, "%s") {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails, by its documentation
		form = fmt.Sprintf(form, base32.HexEncoding.EncodeToString(b[:])[:13])
	}
	return refusalOf(errcode, errmsg(errcode, ip)+form)
}

func refusalOf(errcode int, text string) answer {
	ans := answered(field{"errcode", errcode}, field{"errmsg", text})
	ans.errcode = errcode
	return ans
}

// errmsg returns the text of an errcode.
func errmsg(errcode int, ip string) string {
	text, known := errmsgs[errcode]
	if !known {
		text = "error"
	}
	return strings.NewReplacer("{ip}", ip, "{ipv6}", ipv6(ip)).Replace(text)
}

// ipv6 returns an IP address in IPv6 notation.
func ipv6(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	return netip.AddrFrom16(addr.As16()).String()
}
