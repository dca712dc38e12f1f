"""The tests: flat, one file for each module, real sockets at the boundary."""
