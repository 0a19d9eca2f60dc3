"""The course kit: hand out the project, grade what comes back, rank it."""
