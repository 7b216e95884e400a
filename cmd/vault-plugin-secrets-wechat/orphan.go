package main

import (
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
)

// orphanCheck is how often the process looks whether Vault is still there.
const orphanCheck = time.Second

// exitWithVault sees to it that the process ends when the Vault that started it is
// gone. A Vault that is killed does not tell its plugins; without this the process
// would stay, and go on calling WeChat to no end. It looks once before it returns,
// because Vault may have died while this process was starting, and from then on in
// the background.
func exitWithVault(logger hclog.Logger) {
	vault := findHost(logger)
	vault.exitIfGone(logger)
	go func() {
		for range time.Tick(orphanCheck) {
			vault.exitIfGone(logger)
		}
	}()
}

func (h host) exitIfGone(logger hclog.Logger) {
	switch {
	case h.deaf():
		os.Exit(1) // A log line would have no reader.
	case h.dead():
		logger.Warn("Vault is gone, the plugin ends")
		os.Exit(1)
	}
}
