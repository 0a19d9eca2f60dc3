"""The names by which a page shows teams: their own, or pseudonyms that tell nothing of them."""

from engine.errors import excerpt

LONGEST = 60  # characters of a name
KINDS = (
    "amber brave calm clever coral cosmic crimson daring eager early emerald fearless gentle "
    "golden hidden humble indigo ivory jolly keen lively lucky lunar mellow merry misty nimble "
    "noble patient polar proud quick quiet royal silent silver sunny swift velvet wild wise"
)
BIRDS = (
    "albatross avocet bittern bluebird bunting cormorant crane curlew dove dunlin eagle egret "
    "falcon finch gannet godwit goldcrest grebe hawk heron hoopoe ibis jackdaw jay kestrel "
    "kingfisher kite lapwing lark linnet magpie martin nightjar oriole osprey owl petrel pipit "
    "plover puffin quail raven redstart robin sandpiper shrike skylark starling stork swallow "
    "swan swift teal tern thrush wagtail warbler wren"
)
STEP = 1013  # a prime: neighbours get unlike names, and none comes twice


def pseudonym(team: int) -> str:
    """The alias of a team by its number in the history, which is no part of who it is.

    It stays the same as long as the history does, and no two teams share one.
    """
    kinds, birds = KINDS.split(), BIRDS.split()
    turn, place = divmod(team, len(kinds) * len(birds))
    kind, bird = divmod(place * STEP % (len(kinds) * len(birds)), len(birds))
    name = f"{kinds[kind]} {birds[bird]}"
    return name.capitalize() + (f" {turn + 1}" if turn else "")


def shown_name(team: int, name: str, anonymous: bool) -> str:
    """What a page shows of a team: one line, cut, and with marks of direction made visible."""
    return pseudonym(team) if anonymous else excerpt(name, LONGEST) or f"Team {team}"
