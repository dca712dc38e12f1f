"""The spool: writes are on disk, in SQLite, before their 202, so a crash loses none of them."""
