"""`kubectl exec` and `kubectl port-forward` for pods that podman runs (pod_support).

A pod has the same name in podman and in the cluster.
"""

import argparse
import asyncio
import ctypes
import socket
import sys
from collections.abc import Sequence
from contextlib import closing, suppress

from tests.e2e import image_support as images
from tests.e2e.pod_support import Pod

LOOPBACK = "127.0.0.1"
CHUNK = 2**16


def _exec(options: argparse.Namespace, command: Sequence[str]) -> int:
    container = Pod(options.pod).container(options.container)
    return images.attempt("podman", "exec", container, *command, capture_output=False).returncode


def _enter_network(pod: Pod) -> None:
    """Have this process make its new sockets in the pod's network; those that it has stay."""
    with open(f"/proc/{pod.holder()}/ns/net", "rb") as network:  # noqa: PTH123 (a descriptor)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(network.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError), closing(writer):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


async def _forward(listening: socket.socket, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, port)
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    server = await asyncio.start_server(connected, sock=listening)
    await server.serve_forever()


def _port_forward(options: argparse.Namespace) -> int:
    here, _, there = options.port.partition(":")
    listening = socket.create_server((LOOPBACK, int(here)))
    _enter_network(Pod(options.pod))
    asyncio.run(_forward(listening, int(there or here)))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one command of kubectl; return its exit code."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="kubectl")
    commands = parser.add_subparsers(dest="do", required=True)
    for name in ("exec", "port-forward"):
        command = commands.add_parser(name)
        command.add_argument("-n", "--namespace", required=True)
        command.add_argument("pod")
    commands.choices["exec"].add_argument("-c", "--container", required=True)
    commands.choices["port-forward"].add_argument("port")
    options = parser.parse_args(arguments[:at])
    if options.do == "exec":
        return _exec(options, arguments[at + 1 :])
    return _port_forward(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
