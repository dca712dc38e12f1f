"""The spool on XFS, which reserves space for growing files, as the kubelet counts it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.spool.sqlite_file import SpoolFile
from tests.e2e import parts
from tests.support.spool import changes, make_row

MIB = 2**20
IMAGE_BYTES = 512 * MIB  # mkfs.xfs makes none below 300 MB


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a new XFS; skips without root or loop devices."""
    if os.geteuid():
        parts.missing("mounting needs root")
    parts.debian("xfsprogs", "mount")
    image, folder = tmp_path / "image", tmp_path / "volume"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    parts.run("mkfs.xfs", "-q", image)
    parts.run("mount", "-o", "loop", image, folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


def blocks(folder: Path) -> int:
    """Return the bytes that the files take, as the kubelet counts them for `sizeLimit`."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def test_a_growing_spool_reserves_little(volume: Path) -> None:
    """While it is filled, its files never take much more of the volume than their size."""
    file = SpoolFile(str(volume / "spool"), 128 * MIB, sync_full=False)
    file.open()
    reserved = seq = 0
    while file.used < 0.95 * file.capacity:
        rows = [make_row(seq := seq + 1, os.urandom(60_000)) for _ in range(16)]
        file.apply(changes(*rows))
        reserved = max(reserved, blocks(volume) - file.size)
    file.close()
    file.unlock()
    assert reserved < MIB
