"""Benchmarks: relevance against the plain gradient, in time and memory, and conversion against export."""
