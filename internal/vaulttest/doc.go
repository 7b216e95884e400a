// Package vaulttest runs real servers for the end-to-end tests and the benchmark:
// Vault's, or any other that speaks Vault's API and keeps its storage in Raft, such
// as OpenBao's. It knows nothing of this engine, and needs no *testing.T: whatever
// can fail returns an error, and the caller decides what that means.
//
// What is there, in the order in which one needs it:
//
//   - [FindHost] finds the program that VAULT_BIN names. What a [Host] does in its
//     own way is in host.go, and only there.
//   - [FindPlugin] takes a plugin's binary, with its checksum and its version.
//   - [New] prepares a [Server] with a directory and a port of its own.
//     [Server.SetUp] starts it for the first time, initialises and unseals it;
//     [Server.Start] and [Server.Unseal] do what an operator does after that.
//     A Server is a client of itself, with the root token: sealing it, for
//     instance, is Sys().Seal().
//   - [Server.Install] puts a plugin's binary into the server's plugin directory,
//     [Server.Register] tells the server of it.
//   - [Server.EnableAudit] and [Server.DisableAudit] are for its audit file.
//   - [Server.Stop] ends the server as an operator would, [Server.Kill] with
//     SIGKILL. [Server.End] ends every process of it that is left, and has to be
//     called for every server; should the caller die without, a watchdog does it.
//   - [Server.Plugins] finds the running processes of its plugins, orphans
//     included, and [Server.KillPlugins] kills them.
//   - [Server.Hide] notes what must never be in the server's log and audit file,
//     and [Server.Leaks] looks for it there.
//   - [Server.Await] repeats what the server needs a moment for.
//     [Server.LogTail] is for the message of a test that failed.
//   - [StartCluster] starts several servers that share one storage, one server log
//     and one audit file: a [Cluster].
package vaulttest
