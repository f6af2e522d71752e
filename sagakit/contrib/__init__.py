"""sagakit inside other frameworks."""
