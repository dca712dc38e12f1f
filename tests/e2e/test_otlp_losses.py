"""What forwarders to OTLP lose in the same troubles (`python -m tests.load.peers.losses`)."""

import pytest

from tests.e2e import parts
from tests.load.peers.losses import BAD, PEERS, TROUBLES, lost
from tests.load.peers.parts import Absent


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_sidecar_loses_only_the_bad_span(trouble: str) -> None:
    """Of 200 spans all arrive, but for the one that the upstream refuses."""
    assert lost(PEERS["sidecar"], trouble) == (1 if trouble == BAD else 0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in PEERS if name != "sidecar"])
def test_its_peers_lose_more(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer loses good spans with the bad one, so the troubles are real; its row is printed."""
    try:
        row = {trouble: lost(PEERS[name], trouble) for trouble in TROUBLES}
    except Absent as absent:
        parts.missing(str(absent))
    with capsys.disabled():
        print(f"\n{name} loses {row}")  # noqa: T201
    assert row[BAD] > 1
