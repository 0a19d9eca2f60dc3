"""Arithmetic of the project once more, closer to the machine: the same numbers in less time.

Each kernel has its readable text elsewhere, which is its oracle in the tests and takes its place
wherever it cannot run. A module that imports Triton is itself imported when it is first used.
"""
