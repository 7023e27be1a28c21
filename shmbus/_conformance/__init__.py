"""What a plugin must keep, as functions that its own tests call; `shmbus.testing` has them by name."""
