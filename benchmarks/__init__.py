"""Benchmarks: scripts that print a table and write JSON and a dated page; see the contract in ``common``."""
