"""Which models there are, by name and by number, and how one is built with its weights."""
