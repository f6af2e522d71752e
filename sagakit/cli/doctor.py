"""``doctor``: looks at everything that can keep sagas from moving."""

from typing import TYPE_CHECKING

from sagakit.cli import environment, fleet
from sagakit.cli.findings import Finding, Level
from sagakit.cli.wording import Say

if TYPE_CHECKING:
    from sagakit.app import SagaKit


def examine(kit: "SagaKit", say: Say, *, worker: str) -> list[Finding]:
    """Look at everything. Nothing is changed, and nothing that is broken raises.

    Args:
        kit: the application's kit.
        say: turns the words of a command into what can be typed.
        worker: the command that starts a worker.
    """
    findings = [
        *environment.configuration(kit.app.conf),
        environment.broker(kit.app),
        *environment.database(kit, say),
    ]
    if any(finding.level is Level.ERROR for finding in findings if finding.subject in ("database", "schema")):
        return findings
    known = fleet.facts(kit)
    return [
        *findings,
        fleet.clock(known),
        fleet.workers(known, worker),
        *fleet.queues(known, kit),
        *fleet.versions(known),
        *fleet.sagas(known, say),
    ]
