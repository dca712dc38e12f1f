"""How a request to a server can fail below HTTP: there is no response to look at."""


class NoResponse(Exception):
    """No response came. `outage`: nobody accepted the connection at all."""

    def __init__(self, message: str, *, outage: bool = False) -> None:
        super().__init__(message)
        self.outage = outage
