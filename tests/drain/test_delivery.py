"""Stateful tests of everything between the listener and the upstreams, with and without a spool.

Hypothesis chooses what agents post, how upstreams and the disk respond, when time passes and when
the process is killed. After every step the accounting balances (D15) and the order of writes is
right: an open write is never stored after the complete one, and a span is never in flight twice. No
write is given up before it has failed alone. In the end everything that was acknowledged is stored,
or counted. Upstreams have whims: they fail for batches above a size, for one span, or for a while.
Every write that an upstream takes alone is delivered in spite of them.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
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
    SPOOL_BYTES,
    TTL_S,
    Process,
    ScriptedFile,
    Upstream,
    new_directory,
    remove_directory,
)
from tests.support.spans import make_span

EXAMPLES = {"quick": 100, "full": 1000, "nightly": 5000, "fuzz": 20_000}
SMALL, LARGE = 10, 3000


@dataclass
class Said:
    """What agents said about one span."""

    started: int = 0  # bits of the lanes that took its first event, a START
    ended: int = 0  # bits of the lanes that took an END
    start_acknowledged: bool = False
    end_acknowledged: bool = False
    # Whether its first START came last, and the lane that gets `data` later took it and the END.
    late: bool = False
    ends: int = 0  # how many were posted
    not_taken: Counter[int] = field(default_factory=Counter)  # events, by the lane's bit
    start_posted: bool = False
    end_posted: bool = False
    end_life: int = -1  # the life of the process in which the first END was posted
    end_much: bool = False  # whether that one had much output
    # Whether the complete write must have the START's input: every END was the same, thin and
    # posted in one life, after the START was acknowledged, and before it expired or reached both
    # upstreams.
    joined: bool = False
    started_at: float = 0.0


def input_of(number: int) -> bytes:
    """The input of a span's START: a large one for every second span."""
    return b'{"p":"%d%b"}' % (number, b"x" * (LARGE if number % 2 else SMALL))


def of_size(name: str, much: bool) -> bytes:
    """A payload that is small or large."""
    return b'{"%b":"%b"}' % (name.encode(), b"x" * (LARGE if much else SMALL))


class ModelMachine(RuleBasedStateMachine):
    """Two lanes, one of which sends batches, and what agents said about each span; no rules."""

    spooled: ClassVar[bool] = False
    tight: ClassVar[bool] = False  # the disk is so full that STARTs are forgotten
    spool_bytes: ClassVar[int] = SPOOL_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.directory = new_directory() if self.spooled else None
        self.upstreams = [Upstream("one", 1, data_follows=True), Upstream("many", 4)]
        self.bits = [1 << number for number in range(len(self.upstreams))]
        self.life = 0
        self.clock = 0.0  # virtual seconds over all lives
        self.lost = [0, 0]
        self.damaged = self.degraded = self.memory_only = False
        self.unsaved = False  # a kill may have ended what was in memory only
        self.spans: dict[int, Said] = {}
        self.process = Process(self.upstreams, self.directory, spool_bytes=self.spool_bytes)

    def said(self, number: int) -> Said:
        """What was said about a span."""
        return self.spans.setdefault(number, Said())

    def post_start(self, number: int, much: bool) -> bool:
        """A START arrives, possibly repeated or late; returns False if it was refused at once."""
        said = self.said(number)
        if said.end_posted and said.end_life != self.life:
            return True  # a new process does not know which spans ended in an earlier one (D20)
        said.start_posted = True
        ends = said.ends

        def accepted(lanes: int) -> None:
            if not said.start_acknowledged:
                said.start_acknowledged, said.started_at = True, self.clock
                # Later ones are joined with it, or with the END.
                said.started = 0 if said.end_posted else lanes
                said.late = bool(said.ended & lanes & 1) and said.end_life == self.life
                said.late &= ends == said.ends
            self.note_not_taken(said, lanes)

        span = make_span(
            str(number), complete=False, input=input_of(number), data=of_size("d", much)
        )
        return self.post(span, accepted)

    def post_end(self, number: int, thin: bool, much: bool) -> bool:
        """An END arrives, possibly without its START; returns False if it was refused at once."""
        said = self.said(number)
        said.late = False
        said.ends += 1
        if not said.end_posted:
            said.end_posted, said.end_life, said.end_much = True, self.life, much
            young = self.clock - said.started_at < TTL_S - 1
            known = young or any(up.lacks(str(number)) for up in self.upstreams)
            said.joined = thin and self.spooled and said.start_acknowledged and known
        elif not thin or said.end_life != self.life or said.end_much != much:
            said.joined = False  # another END than the one that was filled, which is sent as it is

        def accepted(lanes: int) -> None:
            said.end_acknowledged = True
            said.ended |= lanes
            self.note_not_taken(said, lanes)

        output = of_size("o", much)
        span = make_span(str(number), input=b"" if thin else b'{"p":1}', output=output)
        return self.post(span, accepted)

    def note_not_taken(self, said: Said, lanes: int) -> None:
        """An event was acknowledged that only some lanes take."""
        for bit in self.bits:
            said.not_taken[bit] += not lanes & bit

    def post(self, span: Span, accepted: Callable[[int], None]) -> bool:
        """Post an event; returns False if it was refused at once."""
        try:
            self.process.post(span, accepted)
        except QueueFull:
            return False
        self.process.run_ready()
        return True

    @invariant()
    def balanced(self) -> None:
        """Every event and write is accounted for; memory use is bounded."""
        self.process.check()
        self.memory_only |= self.process.spool.degraded

    def new_process(self) -> None:
        """A new process on the same directory."""
        # Only then may anything be missing that came while the disk failed, or did not answer.
        self.degraded |= self.memory_only
        self.memory_only = False
        self.note_lost()
        self.life += 1
        self.process = Process(self.upstreams, self.directory, self.spool_bytes)
        self.process.run_ready()

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
                self.process = Process(self.upstreams, self.directory, spool_bytes=self.spool_bytes)
                assert self.process.spool.status().writes == 0, "a settled write is still on disk"
                self.process.stop()
        finally:
            if not self.process.loop.is_closed():
                self.process.kill(disk_call_done=False)
            remove_directory(self.directory)

    def check_delivered(self) -> None:
        """What a lane took is stored, a dead letter, or counted as lost; so is what it did not."""
        for upstream, bit, lost in zip(self.upstreams, self.bits, self.lost, strict=True):
            missing = 0
            for number, said in self.spans.items():
                id_ = str(number)
                kind, payload = upstream.rows.get(id_, ("", b""))
                counted, not_taken = upstream.not_taken[id_], said.not_taken[bit]
                # A kill may come between the count and the response; and a START whose write was
                # counted is held again by the process that recovers it.
                assert self.life or counted <= not_taken, "counted, but it was taken"
                if id_ in upstream.dead:
                    continue
                taken = (said.ended & bit and kind != "complete") or (
                    said.started & bit and not kind
                )
                missing += bool(taken)
                excused = counted or lost or self.damaged or self.degraded
                if said.end_acknowledged and kind != "complete" and not excused:
                    raise AssertionError("an END was neither taken nor counted")
                if said.start_acknowledged and not kind and not excused:
                    raise AssertionError("a START was neither taken nor counted")
                if lost or self.damaged or self.degraded:
                    continue
                if said.started & bit and kind == "open":
                    assert upstream.data.get(id_), "the data of a START is missing"
                # A supplement in memory may overtake its END in a row that could not be written.
                if said.late and bit == 1 and not self.memory_only:
                    assert upstream.data.get(id_), "the data of a late START is missing"
                if said.joined and kind == "complete" and not self.tight:
                    assert payload == input_of(number), "an END was not filled from its START"
            orphans = upstream.orphans and not (self.degraded or self.memory_only)
            assert not orphans or lost or self.damaged, "a supplement adds to nothing"
            assert missing <= lost or self.unsaved, "what was taken is neither stored nor counted"


class DeliveryMachine(ModelMachine):
    """Anything may happen; no spool."""

    @rule(number=st.integers(0, 30), much=st.booleans())
    def start(self, number: int, much: bool) -> None:
        """A START arrives, possibly repeated, possibly late, with little or much data."""
        self.post_start(number, much)

    @rule(number=st.integers(0, 30), thin=st.booleans(), much=st.booleans())
    def end(self, number: int, thin: bool, much: bool) -> None:
        """An END arrives, thin or whole, possibly repeated, possibly without its START."""
        self.post_end(number, thin, much)

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


class KillMachine(SpoolMachine):
    """The disk works, and the process may be killed at any step."""

    @rule(disk_call_done=st.booleans(), applied=st.booleans())
    def kill(self, disk_call_done: bool, applied: bool) -> None:
        """Kill the process; what it was sending has reached the upstreams or not."""
        for upstream in self.upstreams:
            if applied:
                for request in upstream.pending:
                    upstream.apply(request)
        self.unsaved |= self.memory_only
        self.process.kill(disk_call_done=disk_call_done)
        self.new_process()

    @rule()
    def stop(self) -> None:
        """Stop in order, without a grace period: nothing that is on disk is lost."""
        self.process.stop()
        assert self.memory_only or self.process.lost() == [0, 0]
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


def examples(share: float = 1.0) -> settings:
    """How many examples a state machine runs, by profile; `share`: of those of this file."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")
    return settings(
        max_examples=int(EXAMPLES[profile] * share),
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
    )


TestDelivery: Any = DeliveryMachine.TestCase
TestDelivery.settings = examples()
TestKill: Any = KillMachine.TestCase
TestKill.settings = examples()
TestDisk: Any = DiskMachine.TestCase
TestDisk.settings = examples()


def test_a_repeated_start_leaves_memory_while_its_end_waits_for_the_disk() -> None:
    """The END is filled all the same: its payloads are loaded again."""
    machine = KillMachine()
    try:
        for number, much in ((7, False), (10, True), (4, True)):
            machine.start(number=number, much=much)
        machine.end(number=1, thin=True, much=True)
        machine.end(number=25, thin=False, much=False)
        machine.start(number=5, much=True)
        machine.start(number=18, much=False)
        machine.end(number=8, thin=True, much=True)
        machine.start(number=9, much=False)
        machine.stop()
        machine.end(number=26, thin=False, much=False)
        machine.end(number=7, thin=True, much=True)
        machine.start(number=7, much=True)
        machine.start(number=29, much=True)
    finally:
        machine.teardown()
