"""Sizes in configuration values, such as `"64MiB"`."""

import re

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]iB|[KM]B|B|)")


class Size(int):
    """A number of bytes, configured as `"64MiB"`; `"auto"`, where allowed, is -1."""

    @classmethod
    def parse(cls, value: object) -> "Size":
        """Parse a configured value; raises `ValueError`."""
        if value == "auto":
            return AUTO
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a size such as "64MiB"')
        return cls(float(match[1]) * _UNITS[match[2]])

    def __str__(self) -> str:
        """The size in the largest unit that divides it evenly; `parse` accepts it."""
        if self == AUTO:
            return "auto"
        for unit in ("GiB", "MiB", "KiB"):
            if self and not int(self) % _UNITS[unit]:
                return f"{int(self) // _UNITS[unit]}{unit}"
        return f"{int(self)}B"


AUTO = Size(-1)
