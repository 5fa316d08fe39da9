"""Arguments, the loop, and what it needs."""
