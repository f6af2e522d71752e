"""What happens when processes, the broker or the database's connections are killed on purpose."""
