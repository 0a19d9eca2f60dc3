"""Faster forms of what the lesson has: each has its text as its oracle, and can be left out."""
