"""The signals that the process takes on a thread of its own (D28).

Process 1 of a container never gets a signal that it neither handles nor blocks. So all of them are
blocked before anything else is imported, and wait for the thread (watchdog.py). A signal handler of
Python would run on the main thread, which may be the one that hangs.
"""

import signal

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Not taken: what can't be, the program's own faults, job control, and what does no harm.
_LEFT_ALONE = (
    *("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "IOT", "SYS", "EMT"),
    *("TSTP", "TTIN", "TTOU", "CONT", "CHLD", "CLD", "URG", "WINCH", "INFO"),
)


def taken() -> set[int]:
    """Every signal that could end the process, except for a SIGHUP that `nohup` ignores."""
    left_alone = {getattr(signal, f"SIG{name}", None) for name in _LEFT_ALONE}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        left_alone.add(signal.SIGHUP)
    return {int(number) for number in signal.valid_signals()} - left_alone


def block() -> None:
    """Have the signals wait. Threads that are started later inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, taken())


def unblock() -> None:
    """Let them have their usual effect, for a command that is not a daemon."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, taken())
