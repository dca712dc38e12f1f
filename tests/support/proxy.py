"""A proxy in every variable that names one, which nobody should use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwanted_proxy() -> Iterator[dict[str, str]]:
    """Listen on loopback; yield variables that name this as the proxy for every URL.

    At the end, no connection may have been made to it. None is answered: who uses it, waits.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy")
        yield {spelling: url for name in names for spelling in (name, name.upper())}
        server.setblocking(False)
        try:
            used, _ = server.accept()
        except BlockingIOError:
            return
        used.close()
        raise AssertionError("a connection to the proxy")
