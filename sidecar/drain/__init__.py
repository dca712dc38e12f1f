"""Sends one lane's writes: decides what to send next, how fast, and what a failure means."""
