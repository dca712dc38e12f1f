"""The tests mirror the daemon's folders; faults/ and e2e/ test the whole daemon."""
