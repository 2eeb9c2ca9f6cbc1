"""Reads a Kafka and a Redis, writes a table: figures of the fleet, each beside its limit (`make bench`)."""
