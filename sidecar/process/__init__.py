"""The process and its machine: memory, addresses, the exit report."""
