"""The error of a request that got no HTTP response."""


class NoResponse(Exception):
    """No response was received.

    `outage`: not even a connection could be opened; `late`: not in time.
    """

    def __init__(self, message: str, *, outage: bool = False, late: bool = False) -> None:
        super().__init__(message)
        self.outage = outage
        self.late = late
