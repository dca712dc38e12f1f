"""Stateful tests of everything between the listener and the upstreams, with and without a spool.

Hypothesis chooses what agents post, how upstreams and the disk respond, when time passes and when
the process is killed. After every step the accounting balances (D15) and the order of writes is
right: an open write is never stored after the complete one, and a span is never in flight twice. No
write is given up before it has failed alone. In the end everything that was acknowledged is stored,
or counted. Upstreams have whims: they fail for batches above a size, for one span, or for a while.
Every write that an upstream takes alone is delivered in spite of them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from sidecar.queue.admission import QueueFull
from sidecar.spans.span import Span
from tests.support.delivery import (
    ABOUT_CONTENT,
    FAILURES,
    OUTCOMES,
    TTL_S,
    Process,
    ScriptedFile,
    Upstream,
    new_directory,
    remove_directory,
)
from tests.support.spans import make_span

EXAMPLES = {"quick": 100, "full": 2000, "nightly": 5000, "fuzz": 20_000}
SMALL, LARGE = 10, 3000


@dataclass
class Said:
    """What agents said about one span."""

    started: bool = False  # a START was acknowledged
    ended: bool = False  # an END was acknowledged
    start_posted: bool = False
    end_posted: bool = False
    end_life: int = -1  # the life of the process in which the first END was posted
    # Whether the complete write must have the START's input: every END was thin and posted in one
    # life, after the START was acknowledged, and before it expired or reached both upstreams.
    joined: bool = False
    started_at: float = 0.0


def input_of(number: int) -> bytes:
    """The input of a span's START: a large one for every second span."""
    return b'{"p":"%d%b"}' % (number, b"x" * (LARGE if number % 2 else SMALL))


class DeliveryMachine(RuleBasedStateMachine):
    """Two lanes, one of which sends batches; no spool."""

    spooled: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = new_directory() if self.spooled else None
        self.upstreams = [Upstream("one", 1, data_follows=True), Upstream("many", 4)]
        self.life = 0
        self.clock = 0.0  # virtual seconds over all lives
        self.lost = [0, 0]
        self.damaged = self.degraded = False
        self.spans: dict[int, Said] = {}
        self.process = Process(self.upstreams, self.directory)

    def said(self, number: int) -> Said:
        """What was said about a span."""
        return self.spans.setdefault(number, Said())

    @rule(number=st.integers(0, 30))
    def start(self, number: int) -> None:
        """A START arrives, possibly repeated, possibly late."""
        said = self.said(number)
        if said.end_posted and said.end_life != self.life:
            return  # a new process does not know which spans ended in an earlier one (D20)
        said.start_posted = True

        def accepted() -> None:
            if not said.started:
                said.started, said.started_at = True, self.clock

        span = make_span(str(number), complete=False, input=input_of(number), data=b'{"d":1}')
        self.post(span, accepted)

    @rule(number=st.integers(0, 30), thin=st.booleans())
    def end(self, number: int, thin: bool) -> None:
        """An END arrives, thin or whole, possibly repeated, possibly without its START."""
        said = self.said(number)
        if not said.end_posted:
            said.end_posted, said.end_life = True, self.life
            young = self.clock - said.started_at < TTL_S - 1
            known = young or any(up.lacks(str(number)) for up in self.upstreams)
            said.joined = thin and self.spooled and said.started and known
        elif not thin or said.end_life != self.life:
            said.joined = False

        def accepted() -> None:
            said.ended = True

        span = make_span(str(number), input=b"" if thin else b'{"p":1}', output=b'{"o":1}')
        self.post(span, accepted)

    def post(self, span: Span, accepted: Callable[[], None]) -> None:
        """Post an event."""
        try:
            self.process.post(span, accepted)
        except QueueFull:
            return
        self.process.run_ready()

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.5, 2.5, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.clock += seconds
        self.process.pass_time(seconds)

    @precondition(lambda self: any(upstream.pending for upstream in self.upstreams))
    @rule(data=st.data(), outcome=st.sampled_from(sorted(OUTCOMES)), applied=st.booleans())
    def respond(self, data: st.DataObject, outcome: str, applied: bool) -> None:
        """An upstream responds; after a failure it may have stored the batch all the same."""
        upstream = data.draw(st.sampled_from([up for up in self.upstreams if up.pending]))
        request = data.draw(st.sampled_from(upstream.pending))
        upstream.respond(request, outcome, applied=applied)
        self.process.run_ready()

    @precondition(lambda self: any(upstream.pending for upstream in self.upstreams))
    @rule()
    def accept_all(self) -> None:
        """Both upstreams accept all that is in flight."""
        for upstream in self.upstreams:
            for request in list(upstream.pending):
                upstream.respond(request, "ok", applied=True)
        self.process.run_ready()

    @rule(many=st.integers(1, 3), outcome=st.sampled_from(ABOUT_CONTENT))
    def dislike_large(self, many: int, outcome: str) -> None:
        """From now on, an upstream fails for batches with more writes."""
        self.upstreams[1].whims.max_writes = many
        self.upstreams[1].whims.when_larger = outcome

    @rule(
        which=st.integers(0, 1), number=st.integers(0, 30), outcome=st.sampled_from(ABOUT_CONTENT)
    )
    def hate(self, which: int, number: int, outcome: str) -> None:
        """From now on, an upstream fails for one span."""
        self.upstreams[which].whims.hated[str(number)] = outcome

    @rule(
        which=st.integers(0, 1),
        seconds=st.sampled_from([0.3, 3.0, 90.0]),
        outcome=st.sampled_from(FAILURES),
    )
    def close_for_a_while(self, which: int, seconds: float, outcome: str) -> None:
        """For some time, an upstream fails for everything."""
        whims = self.upstreams[which].whims
        whims.closed_until, whims.when_closed = self.process.loop.time() + seconds, outcome

    @invariant()
    def balanced(self) -> None:
        """Every event and write is accounted for; memory use is bounded."""
        self.process.check()
        self.degraded |= self.process.spool.degraded

    def note_lost(self) -> None:
        """Add what this process counted as lost."""
        self.lost = [a + b for a, b in zip(self.lost, self.process.lost(), strict=True)]

    def teardown(self) -> None:
        """Once upstreams and disk work, every acknowledged event is stored or counted."""
        if self.process.loop.is_closed():
            return  # a step has failed
        try:
            self.process.finish()
            self.note_lost()
            self.check_delivered()
            if self.directory is not None:
                self.process = Process(self.upstreams, self.directory)
                assert self.process.spool.status().writes == 0, "a settled write is still on disk"
                self.process.stop()
        finally:
            if not self.process.loop.is_closed():
                self.process.kill(disk_call_done=False)
            remove_directory(self.directory)

    def check_delivered(self) -> None:
        """What was acknowledged is stored, a dead letter, or counted as lost."""
        for upstream, lost in zip(self.upstreams, self.lost, strict=True):
            missing = 0
            for number, said in self.spans.items():
                id_ = str(number)
                kind, payload = upstream.rows.get(id_, ("", b""))
                if id_ in upstream.dead:
                    continue
                missing += (said.ended and kind != "complete") or (said.started and not kind)
                if said.started and not said.end_posted and not (lost or self.degraded):
                    assert self.damaged or upstream.data.get(id_), "the data of a START is missing"
                if (
                    said.joined
                    and kind == "complete"
                    and not (lost or self.damaged or self.degraded)
                ):
                    assert payload == input_of(number), "an END was not filled from its START"
            assert not upstream.orphans or lost or self.damaged, "a supplement adds to nothing"
            assert missing <= lost, "an acknowledged event is neither stored nor counted"


class SpoolMachine(DeliveryMachine):
    """With a spool, whose disk may be slow."""

    spooled = True

    @rule(held=st.booleans())
    def hold_disk(self, held: bool) -> None:
        """From now on calls of the disk wait, or are completed at once."""
        self.process.loop.held = held
        if not held:
            self.process.loop.complete_calls()
            self.process.run_ready()

    @precondition(lambda self: self.process.loop.calls)
    @rule()
    def complete_call(self) -> None:
        """The disk completes one call."""
        self.process.loop.complete_calls(1)
        self.process.run_ready()

    @rule()
    def housekeeping(self) -> None:
        """What the app does every second."""
        self.process.housekeeping()

    @property
    def file(self) -> ScriptedFile:
        """The spool's file."""
        assert self.process.file is not None
        return self.process.file

    @invariant()
    def nothing_lost(self) -> None:
        """A running process loses nothing that is readable."""
        assert self.damaged or self.process.lost() == [0, 0]

    def new_process(self) -> None:
        """A new process on the same directory."""
        self.note_lost()
        self.life += 1
        self.process = Process(self.upstreams, self.directory, self.process.wall_clock())
        self.process.run_ready()


class KillMachine(SpoolMachine):
    """The disk works, and the process may be killed at any step."""

    @rule(disk_call_done=st.booleans(), applied=st.booleans())
    def kill(self, disk_call_done: bool, applied: bool) -> None:
        """Kill the process; what it was sending has reached the upstreams or not."""
        for upstream in self.upstreams:
            if applied:
                for request in upstream.pending:
                    upstream.apply(request)
        self.process.kill(disk_call_done=disk_call_done)
        self.new_process()

    @rule()
    def stop(self) -> None:
        """Stop in order, without a grace period: nothing is lost."""
        self.process.stop()
        assert self.process.lost() == [0, 0]
        self.new_process()


class DiskMachine(SpoolMachine):
    """Any call of the disk may fail, before or after it has had its effect."""

    @rule(row=st.integers(1, 60))
    def damage(self, row: int) -> None:
        """A row becomes unreadable."""
        self.damaged |= self.file.damage(row)

    @rule(when=st.sampled_from(["before", "after"]))
    def fail_once(self, when: str) -> None:
        """The next call of the disk fails."""
        self.file.fails_once = when

    @rule(broken=st.booleans())
    def break_disk(self, broken: bool) -> None:
        """Every call of the disk fails from now on, or none."""
        self.file.broken = broken

    @rule()
    def stop(self) -> None:
        """Stop in order while the disk works: what is not on disk is counted."""
        self.fix_disk()
        self.process.stop()
        self.new_process()

    def fix_disk(self) -> None:
        """The disk works from now on."""
        self.file.broken = False
        self.file.fails_once = ""

    def teardown(self) -> None:
        """Deliver the rest once the disk works again."""
        self.fix_disk()
        super().teardown()


def _examples() -> settings:
    profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")
    return settings(
        max_examples=EXAMPLES[profile],
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
    )


TestDelivery: Any = DeliveryMachine.TestCase
TestDelivery.settings = _examples()
TestKill: Any = KillMachine.TestCase
TestKill.settings = _examples()
TestDisk: Any = DiskMachine.TestCase
TestDisk.settings = _examples()
