"""Bounded waiting: admission, open spans, and one queue per lane."""
