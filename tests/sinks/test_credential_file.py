"""Files with credentials: what is taken for headers."""

import os
from pathlib import Path

import pytest

from sidecar.config_values import HeaderError
from sidecar.credentials import Secret
from sidecar.sinks.credential_file import CredentialFile, header_lines

SECRET = "s3cr3t"


def test_lines_of_headers() -> None:
    """Names in lower case, values without surrounding blanks; comments and blank lines are fine."""
    text = "# rotated daily\n\nAuthorization:  Bearer a:b \r\n  \n\tX-Scope-OrgID: team 1\n #x\n"
    assert header_lines(text) == {
        "authorization": Secret("Bearer a:b"),
        "x-scope-orgid": Secret("team 1"),
    }
    assert header_lines(" \n# nothing yet\n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: 1\n{SECRET}\n", "line 2 must be NAME: VALUE"),
        (f"Bearer {SECRET}: 1\n", "the name of header 1 is not that of an HTTP header"),
        (f"a: {SECRET}\nA: {SECRET}", "a is there twice: leave one out"),
        (f"a: {SECRET}\x00", "the value of a must be printable ASCII, and not empty"),
        (f"a: {SECRET}\xe9", "the value of a must be printable ASCII, and not empty"),
        ("a:\n", "the value of a must be printable ASCII, and not empty"),
        (f"Content-Type: {SECRET}", "content-type is set by the sidecar itself: leave it out"),
        (f"transfer-encoding: {SECRET}", "transfer-encoding is set by the sidecar itself"),
    ],
)
def test_lines_that_are_no_headers(text: str, message: str) -> None:
    """The error says where and why, and never has a value in it."""
    with pytest.raises(HeaderError, match=message) as caught:
        header_lines(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("junk", [b"", b"\n\n", b"a b: 1", b"\xff\xfe", b"a: 1\nb"])
async def test_a_file_that_becomes_invalid(tmp_path: Path, junk: bytes) -> None:
    """The last headers stay, whatever becomes of the file; a valid one replaces all of them."""
    path = tmp_path / "headers"
    file = CredentialFile(str(path), header_lines)
    await file.refresh()
    assert file.headers == {}
    for at, text, known in (
        (1, b"a: 1\nb: 2", {"a": "1", "b": "2"}),
        (2, junk, {"a": "1", "b": "2"}),
        (3, b"b: 3", {"b": "3"}),
    ):
        path.write_bytes(text)
        os.utime(path, (at, at))
        await file.refresh()
        assert {name: secret.reveal() for name, secret in file.headers.items()} == known
    path.unlink()
    await file.refresh()
    assert file.headers == {"b": Secret("3")}
