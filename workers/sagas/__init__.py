"""The shop's sagas, one module each."""
