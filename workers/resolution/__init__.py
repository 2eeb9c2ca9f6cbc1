"""Reads a file's history and its heads, writes nothing: how forked heads become one content again."""
