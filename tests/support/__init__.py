"""What the tests share: a sidecar with its upstreams, fake clocks, fixtures."""
