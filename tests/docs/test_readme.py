"""What the README shows of the demo is what the demo shows."""

import re
from collections import Counter

from tests.docs.pages import ROOT, blocks, read
from workers.orders import generate
from workers.shop.models import Fault

DEMO = (ROOT / "workers" / "demo" / "services.py").read_text("utf-8")
SHOWN = next(block.text for block in blocks("README.md") if block.language == "text")


def test_the_last_lines_are_worded_as_the_demo_words_them() -> None:
    """The figures stand in the demo's own sentences."""
    found = re.findall(r"^(celery\.chain|sagakit) +(\d+) of (\d+) (.+)$", SHOWN, re.MULTILINE)
    assert [name for name, *_ in found] == ["celery.chain", "sagakit"]
    for _, _, _, words in found:
        assert f"of {{total}} {words}" in DEMO
    sentence = " ".join(SHOWN.split("\n\n")[0].split())
    pieces = [piece for piece in re.split(r"\d+ s", sentence) if piece]
    source = " ".join("".join(re.findall(r'"([^"\n]*)"', DEMO)).split())
    assert all(piece.strip() in source for piece in pieces), sentence


def test_the_figures_are_those_of_the_demos_orders() -> None:
    """A chain leaves each customer with nothing whose parcel is refused after the card was charged; a saga none."""
    chain, saga = re.findall(r"^\S+ +(\d+) of 200 ", SHOWN, re.MULTILINE)
    faults = Counter(order.fault for order in generate(200))
    assert int(chain) == faults[Fault.CARRIER_REFUSES]
    assert int(saga) == 0


def test_the_two_commands_come_early() -> None:
    """Whoever reads on for a minute knows how to run it."""
    before = read("README.md").partition("make test")[0]
    assert "make demo" in before
    assert len(before.splitlines()) < 80
