"""For operators: the admin port, and the command-line tools that query a running sidecar."""
