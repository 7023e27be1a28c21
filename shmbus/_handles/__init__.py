"""What the handles of a process share: the session, waiting, and how a handle ends."""
