"""Sending one lane's writes: what goes next, how fast, and what a failure means."""
