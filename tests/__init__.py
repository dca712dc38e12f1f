"""The tests mirror the folders of the daemon; faults/ and e2e/ test the whole of it."""
