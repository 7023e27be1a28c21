"""What travels beside the events, or instead of objects."""
