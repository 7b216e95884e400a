package wechat

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// errcodeRow is a row of the README's table of errcodes.
var errcodeRow = regexp.MustCompile(`(?m)^\| *(-?\d+) *\|(.*)\| *$`)

func TestTheReadmesTableOfErrcodesIsTheCodes(t *testing.T) {
	for _, file := range []string{"README.md", "README.zh-CN.md"} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			rows := map[int][]string{}
			for _, m := range errcodeRow.FindAllStringSubmatch(string(text), -1) {
				errcode, err := strconv.Atoi(m[1])
				require.NoError(t, err)
				var cells []string
				for cell := range strings.SplitSeq(m[2], "|") {
					cells = append(cells, strings.TrimSpace(cell))
				}
				rows[errcode] = cells
			}
			require.Len(t, rows, len(errcodes), "one row for each errcode, and no other")
			for errcode, rule := range errcodes {
				cells := rows[errcode]
				require.Len(t, cells, 5, "errcode %d: class, status, wait, meaning, what to do", errcode)
				require.Equal(t, string(rule.class), cells[0], "errcode %d", errcode)
				require.Equal(t, strconv.Itoa(rule.status), cells[1], "errcode %d", errcode)
				require.Equal(t, waitText(rule.backoff), cells[2], "errcode %d", errcode)
				if file == "README.md" {
					require.Equal(t, []string{rule.meaning, rule.advice}, cells[3:], "errcode %d", errcode)
				}
				require.NotEmpty(t, cells[3], "errcode %d", errcode)
				require.NotEmpty(t, cells[4], "errcode %d", errcode)
			}
		})
	}
}

// waitText is how the table shows a backoff: "1s to 1m", or "1h" where it does
// not grow.
func waitText(b backoff) string {
	short := func(d time.Duration) string {
		switch {
		case d%time.Hour == 0:
			return fmt.Sprintf("%dh", d/time.Hour)
		case d%time.Minute == 0:
			return fmt.Sprintf("%dm", d/time.Minute)
		}
		return fmt.Sprintf("%ds", d/time.Second)
	}
	if b.first == b.most {
		return short(b.first)
	}
	return short(b.first) + " to " + short(b.most)
}
