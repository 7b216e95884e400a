package wechat

import (
	"crypto/rand"
	"encoding/binary"
)

// All randomness of the engine comes from crypto/rand, and from here: jitter needs no
// secrecy, but testing/cryptotest can then seed whatever a test draws, the names of the
// SDK's write-ahead log and the simulator's tokens with it.

// randomFraction returns a number from 0 up to 1.
func randomFraction() float64 { return float64(randomBits()>>11) / (1 << 53) }

// newFence returns a number that no forced call has had yet.
func newFence() int64 { return int64(randomBits()>>1) | 1 }

// randomText returns a text that is not to be guessed.
func randomText() string { return rand.Text() }

func randomBits() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
