"""One module a schema version, numbered 0001, 0002, …; each must leave the version before it working."""
