"""What the autograder checks: one module a part of the course, each a list of `Check`."""
