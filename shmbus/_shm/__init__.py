"""Objects of the operating system: segments, locks, processes, semaphores, FIFOs."""
