"""What a process that starts, follows and operates sagas uses."""
