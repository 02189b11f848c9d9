"""Answers that follow a schema or a grammar, and calls of tools: which tokens may be written, and
what was written.

llguidance computes the masks; it is an optional package (`pip install "qwen25vl[schema]"`), and is
imported where it is used.
"""
