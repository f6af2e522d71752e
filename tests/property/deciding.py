"""A program that decides the advances of many journeys anew, on a heap and with a hash seed of its own."""

import gc
import json
import pickle
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(batch: Path, seed: int, collector: str, naive: bool) -> None:
    """Read journeys from a file, and write what each of their advances decides."""
    sys.path.insert(0, str(ROOT))
    from tests.unit.coordinator.heaps import clutter, import_core_alone

    import_core_alone()
    from sagakit.coordinator import loop
    from tests.property.journeys import decide_again

    if naive:
        for cls in (loop.OrderedFuture, loop.OrderedTask):
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]
    if collector == "eager":
        gc.set_threshold(20, 2, 2)
    elif collector == "off":
        gc.disable()
    rng, kept, found = random.Random(seed), [], []
    for program, snapshots in pickle.loads(batch.read_bytes()):
        kept.append(clutter(rng))
        try:
            found.append(decide_again(program, snapshots))
        except Exception as exc:
            found.append([f"{type(exc).__name__}: {exc}"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], naive="naive" in sys.argv)
