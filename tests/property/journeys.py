"""What may happen to a saga from outside: claims, outcomes, retries, time; and what must hold whatever happens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sagakit.account import happened
from sagakit.coordinator.decide import decide
from sagakit.coordinator.ledger import Decision, Limits, SagaRow, StepRow
from sagakit.coordinator.replay import Replay
from sagakit.definition.step import Step
from sagakit.states import OPEN_STEP_STATES, TASK_KINDS, TERMINAL_SAGA_STATES, Kind, SagaState, StepState
from tests.property.programs import Program, PropertyShop
from tests.unit.coordinator.driving import Declined, Ledger

Command = tuple[int, str | None, str, str, str | None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one advance was given, and what it decided: enough to decide it again elsewhere."""

    saga: SagaRow
    rows: tuple[StepRow, ...]
    now: datetime
    tainted: frozenset[int]
    decided: str


class Journey:
    """One saga, from its start to its end, under the outcomes that ``choices`` pick."""

    def __init__(self, program: Program, choices: Sequence[int]) -> None:
        self.program = program
        self.shop = PropertyShop(program)
        self.ledger = Ledger.of(self.shop.body, advance=False)
        self.snapshots: list[Snapshot] = []
        self.advance()
        for choice in choices:
            if self.ledger.saga.state in TERMINAL_SAGA_STATES:
                break
            self._happen(choice)
        self._come_to_an_end()

    def _happen(self, choice: int) -> None:
        """Let something happen that can happen now: a claim, an outcome, a retry, some time, an advance."""
        ledger = self.ledger
        rows = [row for row in ledger.rows if row.kind in TASK_KINDS and row.state in OPEN_STEP_STATES]
        what, which = choice % 10, choice // 10
        if what >= 8 or not rows:
            wake_at = ledger.decisions[-1].wake_at
            until = (wake_at - ledger.now).total_seconds() if wake_at is not None else 0.0
            self.advance(max(until, 0.0) if which % 2 else 0.0)
            return
        row = rows[which % len(rows)]
        if row.state is StepState.SCHEDULED and what in (0, 1):
            ledger.claim(row.position)
        elif row.state is StepState.RUNNING and what == 0:
            ledger.retry(row.position)
            if which % 3 == 0:
                ledger.tainted.add(row.position)
        else:
            self._end(row, what, which)
        if choice % 3:
            self.advance()

    def _end(self, row: StepRow, what: int, which: int) -> None:
        ledger = self.ledger
        if what == 5:
            ledger.end(row.position, error=OSError("no"), unknown=row.position in ledger.tainted)
        elif what == 6 and row.kind is Kind.STEP and row.task == "shop.charge":
            ledger.end(row.position, error=Declined(reason=f"{which}"))
        elif what == 7:
            ledger.end(row.position, unknown=True)
        else:
            self._succeed(row, which)

    def _succeed(self, row: StepRow, which: int) -> None:
        answer: Any = which
        if row.kind is Kind.PROBE:
            answer = {"happened": True, "result": which} if which % 2 else {"happened": False}
        self.ledger.end(row.position, answer)

    def _come_to_an_end(self) -> None:
        """Let everything that is open succeed, until the saga has ended."""
        for number in range(500):
            if self.ledger.saga.state in TERMINAL_SAGA_STATES:
                return
            self._happen(10 * number + (2 if number % 2 else 8 + 10 * (number // 2 % 2)))
        raise AssertionError("the saga does not end")

    def advance(self, seconds: float = 0.0) -> None:
        """Advance, and see to it that a run from scratch comes to the same."""
        ledger = self.ledger
        before = ledger.saga, tuple(ledger.rows), frozenset(ledger.tainted)
        decision = ledger.advance(seconds)
        self.snapshots.append(Snapshot(before[0], before[1], ledger.now, before[2], tell(decision)))
        if not ledger.saga.body_done:
            self._replay()
        elif not before[0].body_done:
            self._check_abandoned()

    def _replay(self) -> None:
        replay = WatchedReplay(
            self.ledger.saga, self.ledger.rows, self.shop.body, now=self.ledger.now, limits=Limits()
        )
        progress = replay.run()
        assert (progress.inserted, progress.resolved, progress.abandoned, progress.done) == (
            [],
            [],
            [],
            False,
        )
        assert replay.told == self.ledger.commands, "a run from scratch issues the same in the same order"

    def _check_abandoned(self) -> None:
        """The body has ended: what it never saw the outcome of is abandoned, and nothing else."""
        run = self.shop.runs[-1]
        for row in self.ledger.rows:
            if row.kind is Kind.STEP and row.name in run.consumed:
                assert not row.abandoned, f"{row.name} was awaited to its end"
            elif row.kind is Kind.STEP and row.name not in run.direct:
                assert row.abandoned, f"{row.name} was given up"

    def check_end(self) -> None:
        """What was undone is exactly what took effect and had to be, the last first."""
        saga, rows = self.ledger.saga, self.ledger.rows
        probes = {row.compensates: happened(row) for row in rows if row.kind is Kind.PROBE}
        undoing = [row for row in rows if row.kind is Kind.COMPENSATION]
        expected = {
            row.position
            for row in rows
            if row.kind is Kind.STEP
            and row.undo is not None
            and row.state in (StepState.SUCCEEDED, StepState.UNKNOWN)
            and (saga.error is not None or row.abandoned)
            and probes.get(row.position) is not False
        }
        assert {row.compensates for row in undoing} == expected
        for row in undoing:
            target = rows[row.compensates or 0]
            known = target.state is StepState.SUCCEEDED or bool(probes.get(target.position))
            assert target.undo is not None
            assert (row.state is StepState.SKIPPED) == (not known and not target.undo.accepts_none)
        order = [rows[row.compensates or 0].resolved_seq or 0 for row in undoing]
        assert order == sorted(order, reverse=True), "the last that completed is undone first"
        undone = all(row.state is StepState.SUCCEEDED for row in undoing)
        if not undone:
            assert saga.state is SagaState.COMPENSATION_FAILED
        else:
            assert saga.state is (SagaState.COMPLETED if saga.error is None else SagaState.COMPENSATED)
        for row in rows:
            assert row.state not in OPEN_STEP_STATES
            assert row.resolved_seq is not None or row.state is StepState.SKIPPED


class WatchedReplay(Replay):
    """A replay that remembers the arguments of every step, those the ledger has already included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: dict[str, str] = {}
        self._issue_step = self.commands.issue_step
        self.commands.issue_step = self._watch  # type: ignore[method-assign]

    def _watch(self, step: Step[..., Any], args: Any, kwargs: Any, line: Any) -> Any:
        future = self._issue_step(step, args, kwargs, line)
        self.seen[list(self.commands)[-1].key] = step.signature.arguments.dumps(args, kwargs)
        return future

    @property
    def told(self) -> list[Command]:
        return [
            (command.position, command.key, str(command.kind), command.name, self.seen.get(command.key))
            for command in self.commands
        ]


def tell(decision: Decision) -> str:
    """A decision as text, without tracebacks: those name the lines of whoever called the coordinator."""
    if decision.error is not None:
        decision = replace(decision, error=replace(decision.error, traceback=None))
    return repr(decision)


def decide_again(program: Program, snapshots: Sequence[Snapshot]) -> list[str]:
    """What each advance of a journey decides when it is decided anew."""
    body = PropertyShop(program).body
    found = []
    for snapshot in snapshots:

        def withdraw(
            positions: Sequence[int], first_seq: int, snapshot: Snapshot = snapshot
        ) -> dict[int, StepState]:
            return {
                position: StepState.UNKNOWN if position in snapshot.tainted else StepState.CANCELLED
                for position in sorted(positions)
                if snapshot.rows[position].state is StepState.SCHEDULED
            }

        decision = decide(
            snapshot.saga,
            snapshot.rows,
            now=snapshot.now,
            definition=body,
            withdraw=withdraw,
            limits=Limits(),
        )
        found.append(tell(decision))
    return found
