"""Who takes part in a bus, and what each is owed: the registry document, its changes, and the books."""
