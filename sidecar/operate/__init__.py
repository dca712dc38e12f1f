"""What operators use: the admin port and the command line tools around a running sidecar."""
