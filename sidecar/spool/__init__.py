"""The spool: writes are on disk, in SQLite, before the response to their request.

A killed process loses none of them. Only `spool.sync = "full"` also survives power loss.
"""
