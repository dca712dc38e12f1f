"""Load benchmarks: `make bench`. Driver, sidecar and stand-ins are processes on loopback."""
