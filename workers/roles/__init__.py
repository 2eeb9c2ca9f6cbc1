"""Roles: what each may answer, which ones there are, and the agents that do their work."""
