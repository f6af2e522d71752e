"""The doctor's look at the ledger: clocks, workers, their queues and versions, and sagas that need somebody."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sagakit.cli.findings import Finding, error, ok, warning
from sagakit.cli.wording import Say, age, count, listing, printable, short_names
from sagakit.clock import utcnow
from sagakit.states import OPEN_SAGA_STATES, SagaState

if TYPE_CHECKING:
    from sagakit.app import SagaKit
    from sagakit.store.workers import WorkerRecord

UNCLAIMED_TOO_LONG = timedelta(minutes=1)
SKEW_TOLERATED = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the ledger says, read in one transaction.

    Attributes:
        skew: how far this machine's clock is ahead of the database's.
        slack: how long asking took: the skew is known no better than this.
        unclaimed: by queue: rows sent but not claimed, and when the oldest was sent.
        versions: name, version and number of the sagas that are not terminal.
    """

    now: datetime
    skew: timedelta
    slack: timedelta
    workers: Sequence["WorkerRecord"]
    unclaimed: Mapping[str, tuple[int, datetime]]
    versions: Sequence[tuple[str, int, int]]
    states: Mapping[SagaState, int]


def facts(kit: "SagaKit") -> Facts:
    """What the ledger says now."""
    with kit.store.read() as tx:
        tx.now()  # opens the connection, so that the next one measures a round trip
        before = utcnow()
        now = tx.now()
        after = utcnow()
        unclaimed: dict[str, tuple[int, datetime]] = {}
        for queue, number, oldest in tx.queries.oldest_unclaimed():
            name = queue or kit.routing.coordinator_queue
            known = unclaimed.get(name, (0, oldest))
            unclaimed[name] = known[0] + number, min(known[1], oldest)
        return Facts(
            now=now,
            skew=before + (after - before) / 2 - now,
            slack=after - before,
            # A process that runs its sagas eagerly holds a lease, too, and consumes nothing.
            workers=[worker for worker in tx.workers.live() if worker.queues],
            unclaimed=unclaimed,
            versions=tx.queries.open_versions(),
            states=tx.queries.count_by_state(),
        )


def clock(facts: Facts) -> Finding:
    """Whether this machine's clock agrees with the database's."""
    ahead = facts.skew > timedelta(0)
    if abs(facts.skew) > SKEW_TOLERATED + facts.slack:
        return warning(
            "clock",
            f"this machine is {abs(facts.skew).total_seconds():.1f} s {'ahead of' if ahead else 'behind'} the database",
            "synchronise the clocks (NTP); leases and timers use the database's, deadlines given as times do not",
        )
    return ok(
        "clock", f"within {max(abs(facts.skew), facts.slack).total_seconds() * 1000:.0f} ms of the database's"
    )


def workers(facts: Facts, worker: str) -> Finding:
    """Whether any worker is alive."""
    waiting = sum(facts.states.get(state, 0) for state in OPEN_SAGA_STATES)
    if facts.workers:
        slots = sum(worker.concurrency for worker in facts.workers)
        hosts = sorted({worker.hostname for worker in facts.workers})
        # Those that sagakit makes for itself, one a version, are no news to anybody.
        queues = sorted(
            {queue for worker in facts.workers for queue in worker.queues if queue[:8] != "sagakit."}
        )
        return ok(
            "workers",
            f"{count(len(facts.workers), 'worker')} alive with {count(slots, 'slot')} on {printable(listing(hosts))}, "
            f"consuming {printable(listing(queues))}",
        )
    start = f"start one: {worker}"
    if waiting:
        return error("workers", f"none is alive, and {count(waiting, 'saga')} wait for one", start)
    return warning("workers", "none is alive", start)


def queues(facts: Facts, kit: "SagaKit") -> Iterator[Finding]:
    """Queues that steps need and nobody consumes, and rows that wait too long."""
    needed = _needed_queues(kit)
    consumed = {queue for worker in facts.workers for queue in worker.queues}
    orphaned = {queue: users for queue, users in needed.items() if queue not in consumed}
    if facts.workers and orphaned:
        for queue, users in sorted(orphaned.items()):
            rows = facts.unclaimed.get(queue, (0, facts.now))[0]
            who = f"{printable(listing(sorted(users), most=3))} {'needs' if len(users) == 1 else 'need'}"
            message = f"no live worker consumes {printable(queue)!r}, which {who}"
            remedy = f"start a worker with -Q {printable(queue)}"
            if rows:
                yield error("queues", f"{message}; {count(rows, 'row')} wait in it", remedy)
            else:
                yield warning("queues", message, remedy)
    elif facts.workers:
        yield ok(
            "queues", f"every queue the steps need has a live consumer ({printable(listing(sorted(needed)))})"
        )
    for queue, (rows, oldest) in sorted(facts.unclaimed.items()):
        late = facts.now - oldest
        if late > UNCLAIMED_TOO_LONG and not (facts.workers and queue in orphaned):
            yield warning(
                "queues",
                f"{count(rows, 'row')} for {printable(queue)!r} sent and not claimed, the oldest {age(late)} ago",
                "start more workers for it, or look whether those there are busy or blocked",
            )


def _needed_queues(kit: "SagaKit") -> Mapping[str, set[str]]:
    """The queues that steps, their compensations and the coordinator are sent to, with who needs each."""
    needed: dict[str, set[str]] = defaultdict(set)
    names = short_names(kit.steps)
    for name, step in kit.steps.items():
        users = [
            (names[name], step),
            *((other.label, other) for other in (step.undo, step.find_out) if other),
        ]
        for user, task in users:
            # Without a queue's name the route leads to an exchange, and nobody can say who listens.
            if queue := kit.routing.queue_of(task.name, task.options.queue):
                needed[queue].add(user)
    if kit.sagas:
        needed[kit.routing.coordinator_queue].add("the coordinator")
    return needed


def versions(facts: Facts) -> Iterator[Finding]:
    """Versions that unfinished sagas run and no worker has."""
    if not facts.workers:
        return
    run = {version for worker in facts.workers for version in worker.versions}
    short = short_names(name for name, _, _ in facts.versions)
    missing = [entry for entry in facts.versions if f"{entry[0]}:{entry[1]}" not in run]
    for name, version, number in missing:
        yield error(
            "versions",
            f"{count(number, 'saga')} of {printable(short[name])} v{version} {'waits' if number == 1 else 'wait'}, "
            "and no live worker has that version",
            f"start a worker whose code defines {printable(name)} with version={version}",
        )
    if not missing:
        yield ok("versions", "live workers have every version that unfinished sagas run")


def sagas(facts: Facts, say: Say) -> Iterator[Finding]:
    """Sagas that wait for an operator."""
    failed = facts.states.get(SagaState.COMPENSATION_FAILED, 0)
    stuck = facts.states.get(SagaState.STUCK, 0)
    if failed:
        yield warning(
            "sagas",
            f"{count(failed, 'saga')} could not be undone",
            f"see '{say('list', '--status', 'compensation_failed')}', "
            f"then '{say('compensate', 'ID', '--failed-only')}'",
        )
    if stuck:
        yield warning(
            "sagas",
            f"{count(stuck, 'saga')} {'is' if stuck == 1 else 'are'} stuck: the code no longer fits the ledger",
            f"see '{say('list', '--status', 'stuck')}', mend the code, then '{say('resume', 'ID')}'",
        )
    if not failed and not stuck:
        known = ", ".join(f"{number:,} {state.value}" for state, number in sorted(facts.states.items()))
        yield ok("sagas", known or "none yet")
