"""Runnable examples, one per file; the tests run them."""
