"""Which span is current: a stack for each context, held by one `ContextVar`.

A task, or a thread that runs in a copied context, begins with the stack of its creator. Blocks are
not always left in order, nor where they were entered: an async generator may be closed by another
task. So an entry that is left is removed once it is on top, and only by the context that owns it.
"""

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .span import Span


class Entry:
    """A span on the stack of the context that entered it."""

    __slots__ = ("_previous", "_token", "left", "removed", "span")

    def __init__(self, span: "Span") -> None:
        self.span: Span | None = span
        self.left = False
        self.removed = False
        self._previous: Entry | None = None
        self._token: Token[Entry | None] | None = None

    def enter(self) -> None:
        """Make the span current."""
        self._previous = _top()
        self._token = _TOP.set(self)

    def leave(self) -> None:
        """Make the span current no longer; may be called again, and from another context."""
        self.left = True
        if _TOP.get() is self:
            self.removed = self.remove()
        # Copies of the context may keep this entry for long, but not what it is about: of an entry
        # that was removed, nobody asks what was before, and of another one, nobody the span.
        if self.removed:
            self._previous = self._token = None
        else:
            self.span = None
        _top()

    def remove(self) -> bool:
        """Take this entry off the top; return whether it was entered in this very context."""
        if self._token is not None:
            try:
                _TOP.reset(self._token)
            except (ValueError, RuntimeError):
                pass  # the token belongs to another context, or was used there
            else:
                return True
        _TOP.set(self._previous)
        return False

    def is_over(self) -> bool:
        """Whether the context looking at it should go on to what was current before.

        Not if its own context has removed it: then this one was copied inside the block, and what
        a task does after the block has ended still belongs to the span.
        """
        return not self.removed and (self.left or self.span is None or not self.span.is_open)


_TOP: ContextVar[Entry | None] = ContextVar("trace_sidecar_client_span", default=None)


def _top() -> Entry | None:
    while (entry := _TOP.get()) is not None and entry.is_over():
        entry.remove()
    return entry


def current() -> "Span | None":
    """The innermost open span, if any. Pass its ids along when work leaves the process.

    In a task that outlives the block it was created in, that is still the block's span.
    """
    entry = _top()
    return None if entry is None else entry.span


class Shown:
    """Makes a span current for a `with` block, without ending it."""

    __slots__ = ("_entry",)

    def __init__(self, span: "Span") -> None:
        self._entry = Entry(span)

    def __enter__(self) -> None:
        self._entry.enter()

    def __exit__(self, *_: object) -> None:
        self._entry.leave()
