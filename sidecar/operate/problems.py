"""What can't work as configured, although each value by itself is valid: a sentence each.

A sentence names the key, where it is set, and what to do. `check` fails for one, `run` warns of it:
it starts all the same, because files may still come, and one upstream is better than none.

This looks at files, so it blocks while their disk hangs.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from os import sysconf
from pathlib import Path
from shutil import disk_usage
from stat import S_ISREG

from msgspec.structs import replace

from sidecar.config import Config, ConfigError, upstreams
from sidecar.config_load import Key, Settings, said
from sidecar.config_upstreams import masked_path
from sidecar.config_values import HeaderError, Size, did_you_mean
from sidecar.lanes import UPSTREAMS, proxy_of, reached
from sidecar.network import proxies
from sidecar.process.memory import container_limit

_MAX_KEY_BYTES = Size(2**20)
_NO_UPSTREAM = "no upstream is enabled: set " + ", or ".join(
    each.enabled_by for each in upstreams(Config()).values()
)


def missing_settings(config: Config, mistakes: Sequence[str] = ()) -> Mapping[str, str]:
    """For each upstream that is off, by its name, what it needs; for "", if all are off.

    `mistakes`: those because of which an upstream may be off. They begin with its name.
    """
    missing = {}
    for each in UPSTREAMS:
        if not each.enabled(config):
            wrong = [
                text for text in mistakes if text.startswith((f"{each.name}.", f"{each.name}:"))
            ]
            needed = "; ".join(wrong) or getattr(config, each.name).missing
            missing[each.name] = f"{each.title} is off: {needed}"
    if len(missing) < len(UPSTREAMS):
        return missing
    return missing | {
        "": f"no upstream is enabled: {'; '.join(mistakes)}" if mistakes else _NO_UPSTREAM
    }


def without_unusable_proxies(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """`settings` without the upstreams whose proxy, by the pod's variables, can't be used (D12).

    Going around it would not be ours to decide.
    """
    config, mistakes = settings.config, [*settings.mistakes]
    for name in reached(config) if config.network.proxy == proxies.AUTO else ():
        try:
            proxy_of(name, config, environ)
        except ConfigError as error:
            mistakes.append(f"{name}: {error}")
            config = replace(config, **{name: upstreams(config)[name].without_url()})
    return settings._replace(config=config, mistakes=tuple(mistakes))


def no_such_setting(name: str, nearest: str) -> str:
    """A sentence about a variable that sets nothing."""
    return f"{name}: no such setting{did_you_mean(nearest)}"


def problems_of(settings: Settings) -> Iterator[str]:
    """The problems of the configuration, without those that are `settings.mistakes`."""
    for keys, text in (*_half_configured(settings), *_files(settings), *_sizes(settings)):
        if not settings.mistaken.intersection(keys):
            yield said(keys, text, settings.origins)


def _half_configured(settings: Settings) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Upstreams that are off although somebody means to use them."""
    for each in UPSTREAMS:
        section = upstreams(settings.config)[each.name]
        if section.missing:
            given = [key for key in section.credential_keys if getattr(section, key, None)]
            if given:
                # The others are those whose mistakes would be why it is off.
                others = (*section.credential_keys, *section.enabling_keys)
                keys = tuple((each.name, key) for key in (*given, *others))
                yield keys, f"is set, but {each.title} is off: {section.missing}"


def _files(settings: Settings) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Files and directories that can't be used as they are."""
    config = settings.config
    for each in UPSTREAMS:
        section = upstreams(config)[each.name]
        path = section.credential_file
        if path and (text := _credential_file(Path(path), section.file_holds, each.parse)):
            yield ((each.name, section.file_key),), f"{masked_path(path)} {text}"
    letters, spool = config.dead_letters.path, config.spool.path
    if letters and (text := _letters(Path(letters))):
        yield (("dead_letters", "path"),), f"{letters} {text}"
    if spool and (text := _spool(Path(spool))):
        yield (("spool", "path"),), f"{spool} {text}"


def _sizes(settings: Settings) -> Iterator[tuple[tuple[Key, ...], str]]:
    """More than there is of memory, or of the disk."""
    queue, spool = settings.config.queue, settings.config.spool
    memory = container_limit() or 0
    with suppress(OSError, ValueError):  # where the system does not say
        memory = memory or sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    if queue.max_bytes > memory > 0:
        text = f"{queue.max_bytes} is more than the memory that there is, {Size(memory)}"
        yield (("queue", "max_bytes"),), f"{text}: lower it, or raise the container's limit"
    if spool.path:
        disk = 0  # as some file systems say: unknown
        with suppress(OSError):
            disk = disk_usage(_existing(Path(spool.path))).total
        if spool.max_bytes > disk > 0:
            text = f"{spool.max_bytes} is more than the whole disk has, {Size(disk)}"
            yield (("spool", "max_bytes"), ("spool", "path")), f"{text}: lower it, or mount another"


def _existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    return next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))


def _credential_file(path: Path, holds: str, parse: Callable[[str], Collection[str]]) -> str:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            return f"is not a file: give the path of the file with the {holds}"
        if status.st_size > _MAX_KEY_BYTES:
            return f"is larger than {_MAX_KEY_BYTES}: give the path of the file with the {holds}"
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return (
            f"does not exist: mount the Secret there, or give the path of the file with the {holds}"
        )
    except OSError as error:
        return f"can't be read ({error.strerror}): let the sidecar's user read it"
    except UnicodeDecodeError:
        text = "\N{REPLACEMENT CHARACTER}"
    try:
        return "" if parse(text) else f"is empty: write the {holds} to it"
    except HeaderError as error:
        return str(error) if str(error).startswith("must") else f"can't be used: {error}"


def _letters(path: Path) -> str:
    for each in (path, Path(f"{path}.1")):  # the second is for older letters
        if text := _unreachable(each):
            return text
        if each.is_dir():
            if each is path:
                return "is a directory: give the path of a file in it"
            return f"needs {each} for older letters, which is a directory: remove it"
        if each.exists() and not each.is_file():
            return "is not a regular file: give the path of one"
        if each.exists() and not os.access(each, os.R_OK | os.W_OK):
            return "can't be written: let the sidecar's user write it"
    return _directory(Path(os.path.realpath(path)).parent, made=False)


def _spool(path: Path) -> str:
    if text := _unreachable(path):
        return text
    if path.exists() and not path.is_dir():
        return "is not a directory: give the path of a directory, which the sidecar creates"
    for each in path.glob("spool.*"):
        if _unreachable(each) or not each.is_file() or not os.access(each, os.R_OK | os.W_OK):
            return f"has {each.name} in it, which can't be written: let the sidecar's user write it"
    return _directory(path, made=True)


def _unreachable(path: Path) -> str:
    """Why nobody can tell what is at a path."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"can't be reached ({error.strerror}): let the sidecar's user do so, or correct it"
    return ""


def _directory(path: Path, *, made: bool) -> str:
    """Why no file can be created in a directory; `made`: which the sidecar makes if need be."""
    path = _existing(path) if made else path
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        return f"can't be created, because {path} {what}: mount a volume there"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"can't be created, because {path} is read-only for this user: mount a volume there"
    return ""
