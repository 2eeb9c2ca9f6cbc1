"""Reads the command line, writes to the terminal: `python -m codeconvoy.orchestrator.cli`."""

from codeconvoy.orchestrator.cli import main

main()
