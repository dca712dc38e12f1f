"""The container's memory limit, the queue's share of it, and trimming."""

from pathlib import Path

import pytest

from sidecar.process.memory import MIB, SHARE, Trimmer, automatic_max_bytes, container_limit

NONE = Path("/nonexistent")


def cgroup(root: Path, **files: str) -> Path:
    """A cgroup file system with these files; `__` stands for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("memory_", "memory.")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "limit"), [("268435456\n", 2**28), ("max\n", None), ("", None), ("junk", None)]
)
def test_cgroup_v2(tmp_path: Path, text: str, limit: int | None) -> None:
    """In cgroup v2 the limit is a number, or `max` for none."""
    assert container_limit(cgroup(tmp_path, memory_max=text), NONE) == limit


@pytest.mark.parametrize(
    ("text", "limit"), [("268435456\n", 2**28), ("9223372036854771712\n", None)]
)
def test_cgroup_v1(tmp_path: Path, text: str, limit: int | None) -> None:
    """In cgroup v1 the limit is a number, a huge one for none."""
    root = cgroup(tmp_path, memory__memory_limit_in_bytes=text)
    assert container_limit(root, NONE) == limit


@pytest.mark.parametrize(
    ("own", "name"),
    [("0::/kube/pod", "memory.max"), ("4:cpu,memory:/kube/pod\n0::/x", "memory.limit_in_bytes")],
)
@pytest.mark.parametrize("above", ["kube", "kube/pod"])
def test_the_smallest_limit_of_our_cgroup_and_its_ancestors(
    tmp_path: Path, own: str, name: str, above: str
) -> None:
    """Where the whole tree is visible, /proc/self/cgroup has our place in it."""
    (tmp_path / "own").write_text(own)
    root = tmp_path / "memory" if name.endswith("bytes") else tmp_path
    for path, limit in (("", 2**40), ("kube", 2**32), ("kube/pod", 2**33), (above, 2**27)):
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / name).write_text(f"{limit}\n")
    assert container_limit(tmp_path, tmp_path / "own") == 2**27


def test_no_cgroup(tmp_path: Path) -> None:
    """Without a cgroup file system there is no limit."""
    assert container_limit(tmp_path, NONE) is None


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (None, 256 * MIB),
        (256 * MIB, int(256 * MIB * SHARE)),
        (1, 8 * MIB),
        (2**40, 1024 * MIB),
    ],
)
def test_the_queue_takes_a_share(limit: int | None, size: int) -> None:
    """The queue gets a share of the limit, within bounds."""
    assert automatic_max_bytes(limit) == size


def test_trimming_follows_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """It trims after much was freed, and once more when usage has settled."""
    calls: list[int] = []
    monkeypatch.setattr("sidecar.process.memory._find_trim", lambda: calls.append)
    trimmer = Trimmer()
    seen = []
    for used in (0, 50, 48, 45, 45, 47, 42, 0, 0):
        trimmer.observe(used * MIB)
        seen.append(len(calls))
    assert seen == [0, 0, 0, 1, 1, 1, 2, 3, 3]


def test_no_malloc_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C library without `malloc_trim` is not an error."""
    monkeypatch.setattr("sidecar.process.memory._find_trim", lambda: None)
    trimmer = Trimmer()
    trimmer.observe(50 * MIB)
    trimmer.observe(0)


def test_the_real_call() -> None:
    """This platform's `malloc_trim`, if any, can be called."""
    trimmer = Trimmer()
    trimmer.observe(50 * MIB)
    trimmer.observe(0)
