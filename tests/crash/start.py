"""Starts one saga in a process of its own, which a test may have die at a point: ``python -m tests.crash.start ID``."""

import sys

from tests.crash.sagas import checkout

checkout.start(sys.argv[1], saga_id=sys.argv[1])
