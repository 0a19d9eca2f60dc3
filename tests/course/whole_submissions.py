"""Submissions of whole projects, and their results."""

import json
import shutil

import starter_files

from course.autograder.__main__ import main
from engine.files import ROOT


def copied(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def course_form(folder, **forms):
    copied(folder, starter_files.LESSON)
    for name, text in starter_files.texts(**forms).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def grade(submitted, tmp_path, *words):
    out = tmp_path / "results.json"
    main(["grade", str(submitted), "--out", str(out), *map(str, words)])
    return json.loads(out.read_text(encoding="utf-8"))
