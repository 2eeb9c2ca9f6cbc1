"""Rule-based agents: real work with ruff and libcst, no model and no key.

They see what any agent sees, and nothing else. `agents` is where to start reading.
"""
