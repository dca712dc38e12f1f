"""What an upstream, an agent, a disk or a kill can do to a running sidecar."""
