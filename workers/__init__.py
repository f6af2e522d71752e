"""The deployable worker application: a small online shop whose checkout is a saga."""
