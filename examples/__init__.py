"""Examples: one job a file, run by the tests."""
