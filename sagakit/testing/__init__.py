"""Tools for the tests of people who use sagakit: run a step or a body with no database and no broker."""

from sagakit.testing.body import Call, SagaRun, run_saga, takes
from sagakit.testing.step import step_context

__all__ = ["Call", "SagaRun", "run_saga", "step_context", "takes"]
