"""The language of the logs: typed records, codec, topics and keys, and the two pure folds.

Imports nothing else of codeconvoy and does no IO.
"""
