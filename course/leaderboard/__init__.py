"""A leaderboard of submissions: scored once, ranked with intervals, shown as a static site."""
