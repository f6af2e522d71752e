"""What the tests run sagas on: servers, worker processes, and a record of what the steps did.

Nothing is imported here: worker processes import ``tests.cluster.effects``, and need none of the rest.
"""
