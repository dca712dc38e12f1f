"""The process and its machine: memory, descriptors, signals, sockets, output, blocking calls."""
