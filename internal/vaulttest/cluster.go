//go:build unix

package vaulttest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Cluster is several servers with one Raft storage. They write into one server log
// and one audit file, those of the first node, because the path of an audit file is
// the same on all nodes.
type Cluster struct {
	Nodes []*Server
}

// StartCluster starts servers as one cluster: the first as SetUp does, the others
// join it. End has to follow, also after an error, unless the cluster is nil.
func StartCluster(ctx context.Context, config Config, nodes int) (*Cluster, error) {
	c := &Cluster{}
	for i := range nodes {
		node := config
		node.Dir = filepath.Join(config.Dir, fmt.Sprintf("node-%d", i))
		s, err := newServer(node, filepath.Base(node.Dir))
		if err != nil {
			return c, err
		}
		c.Nodes = append(c.Nodes, s)
		if i > 0 {
			s.log, s.audit = c.Nodes[0].log, c.Nodes[0].audit
			if err := s.Join(ctx, c.Nodes[0]); err != nil {
				return c, err
			}
			continue
		}
		if err := s.SetUp(ctx); err != nil {
			return c, err
		}
		// A new node would otherwise have no vote for its first ten seconds.
		_, err = s.Logical().WriteWithContext(ctx, "sys/storage/raft/autopilot/configuration", map[string]any{"server_stabilization_time": "1s"})
		if err != nil {
			return c, err
		}
	}
	return c, c.Nodes[0].Await(ctx, "give every node a vote", func() error {
		voters, err := c.voters(ctx)
		if err == nil && voters < nodes {
			err = fmt.Errorf("%d nodes of %d have one", voters, nodes)
		}
		return err
	})
}

// voters returns how many nodes have a vote.
func (c *Cluster) voters(ctx context.Context) (int, error) {
	answer, err := c.Nodes[0].Logical().ReadWithContext(ctx, "sys/storage/raft/configuration")
	if err != nil {
		return 0, err
	}
	if answer == nil {
		return 0, errors.New("there is no configuration of Raft")
	}
	n := 0
	config, _ := answer.Data["config"].(map[string]any)
	servers, _ := config["servers"].([]any)
	for _, server := range servers {
		if node, _ := server.(map[string]any); node["voter"] == true {
			n++
		}
	}
	return n, nil
}

// Leader waits for a node that is active, other than the given one, which may be
// nil.
func (c *Cluster) Leader(ctx context.Context, but *Server) (*Server, error) {
	for deadline := time.Now().Add(Patience); ; {
		for _, s := range c.Nodes {
			if s != but && s.Active(ctx) {
				return s, nil
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no node becomes active; the log ends with\n%s", c.Nodes[0].LogTail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Install puts a plugin's binary into the plugin directory of every node, and
// Register tells the cluster of it.
func (c *Cluster) Install(p Plugin) error {
	for _, s := range c.Nodes {
		if err := s.Install(p); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops the nodes that run, one after the other.
func (c *Cluster) Stop() error {
	for _, s := range c.Nodes {
		if err := s.Stop(); err != nil {
			return err
		}
	}
	return nil
}

// End ends every process of every node.
func (c *Cluster) End() {
	for _, s := range c.Nodes {
		s.End()
	}
}
