"""Load benchmarks: `make bench`. Three processes on loopback: driver, sidecar, stand-ins."""
