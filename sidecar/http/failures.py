"""The errors of a request that got no HTTP response."""


class NoResponse(Exception):
    """No response was received. `outage`: not even a connection could be opened."""

    def __init__(self, message: str, *, outage: bool = False) -> None:
        super().__init__(message)
        self.outage = outage


class ConnectTimeout(TimeoutError):
    """No connection could be opened in time."""
