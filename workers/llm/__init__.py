"""Agents behind which a model or a program stands: the answer format, prompts, providers."""
