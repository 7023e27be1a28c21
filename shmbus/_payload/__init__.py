"""What travels beside the events, or instead of objects: pools, arrays and buffers; rows."""
