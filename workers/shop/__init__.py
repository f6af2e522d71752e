"""The online shop: its values, and the simulated services it buys from."""
