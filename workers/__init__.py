"""Everything that consumes: engines, roles, projector, conflict detector, resolution."""
