"""Git in and out: reads repositories at a ref, plans and writes branches by plumbing.

Nothing here runs a hook, a filter or a program that a repository names, and nothing touches a
user's work tree, index or configuration.
"""
