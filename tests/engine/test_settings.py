"""Settings: frozen, replaced as a whole, and a run's name made of what was changed."""

import json
from argparse import ArgumentParser

import pytest

from engine.checkpoint import RunFolder
from engine.settings import Settings


def parse(*argv, more_flags=()) -> Settings:
    parser = ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=1)
    for flag in more_flags:
        parser.add_argument(flag, default="off")
    return Settings.parse(parser, argv)


def test_settings_cannot_be_changed_only_replaced():
    settings = parse("--seed", "2")
    with pytest.raises(AttributeError, match=r"use replace\(seed=…\)"):
        settings.seed = 3
    other = settings.replace(seed=3, gpt_config={"hidden_size": 8})
    assert (settings.seed, other.seed, other.lr) == (2, 3, 1e-5)
    assert vars(other) == {"lr": 1e-5, "seed": 3, "gpt_config": {"hidden_size": 8}}
    assert not hasattr(settings, "gpt_config")


def test_changed_are_the_flags_that_differ_from_their_defaults_and_what_is_no_flag():
    assert parse().changed() == {}
    assert parse("--lr", "1e-5", "--seed", "2").changed() == {"seed": 2}
    assert parse().replace(num_labels=5).changed() == {"num_labels": 5}
    assert parse("--seed", "2").replace(seed=1).changed() == {}


def test_settings_are_plain_json():
    settings = parse("--seed", "2")
    assert Settings(json.loads(json.dumps(vars(settings)))) == settings


def test_a_new_flag_leaves_the_names_of_runs_as_they_are(tmp_path):
    def path(settings):
        return RunFolder(tmp_path, "sst", "gpt2", settings).path

    old = path(parse("--seed", "2"))
    assert path(parse("--seed", "2", more_flags=["--new"])) == old
    assert path(parse("--seed", "2", "--new", "on", more_flags=["--new"])) != old
    assert path(parse("--seed", "3")) != old
