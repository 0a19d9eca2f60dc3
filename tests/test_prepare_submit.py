"""The submission: a whole tree becomes a zip, a defective one a list of what is wrong."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import classifier
import prepare_submit
from engine import prediction_files, submission_form
from engine.files import ROOT
from engine.records import Record

COURSE = ROOT.parent / "shared" / "data"
LABELS = {"sst": [3, 0, 4], "cfimdb": [1, 0, 1], "para": [8505, 3919, 8505]}
IDS = ["a1f0", "b2e1", "c3d2"]
SENTIMENT = [
    f"predictions/{prefix}-{name}-{split}-out.csv"
    for prefix in ("finetune", "pretrain")
    for name in ("sst", "cfimdb")
    for split in ("dev", "test")
]
SST, PARA = "predictions/finetune-sst-dev-out.csv", "predictions/para-test-output.csv"
POEMS = "predictions/generated_sonnets.txt"
CODE = [name for name in prepare_submit.code_files(ROOT) if not name.startswith("extensions/")]
FULL_MODEL = "python classifier.py --fine-tune-mode full-model --use_gpu"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_data(folder: Path) -> None:
    for name in ("sst", "cfimdb"):
        rows = [f"{i}\t {sent_id.upper()} \tfine" for i, sent_id in enumerate(IDS)]
        labelled = [f"{row}\t1" for row in rows]
        write(folder / f"ids-{name}-dev.csv", "\n".join(["\tid\tsentence\tsentiment", *labelled]))
        write(folder / f"ids-{name}-test-student.csv", "\n".join(["\tid\tsentence", *rows]))
    pairs = [f"{i}\t{sent_id}\twhy?\thow?" for i, sent_id in enumerate(IDS)]
    dev = ["\tid\tsentence1\tsentence2\tis_duplicate", *[f"{pair}\t1.0" for pair in pairs]]
    write(folder / "quora-dev.csv", "\n".join([*dev, "3\td4\twhy?\thow?\t", "4\te5\twhy?\t\t0.0"]))
    header = "\tid\tsentence1\tsentence2"
    write(folder / "quora-test-student.csv", "\n".join([header, *pairs, "3\td4\twhy?"]))
    for name in ("sonnets_held_out.txt", "sonnets_held_out_dev.txt"):
        write(folder / name, "Sonnets\n\n155\n\nWhen my love swears\n\n156\n\nTwo loves I have\n")


@pytest.fixture
def root(tmp_path):
    """A small tree that is whole, with predictions as the programs write them."""
    root = tmp_path / "tree"
    for name in CODE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in ("extensions/lora.py", "extensions/README.md"):
        write(root / name, f"# {name}\n")
    write_data(root / "data")
    for path in SENTIMENT:
        labels = LABELS["sst" if "-sst-" in path else "cfimdb"]
        prediction_files.write_predictions(root / path, "Predicted_Sentiment", IDS, labels)
    for split in ("dev", "test"):
        path = root / f"predictions/para-{split}-output.csv"
        prediction_files.write_predictions(path, "Predicted_Is_Paraphrase", IDS, LABELS["para"])
    sonnets = [Record("155", "When my love swears\nThat she is"), Record("156", "Two loves I have")]
    for name in ("generated_sonnets.txt", "generated_sonnets_dev.txt"):
        prediction_files.write_sonnets(root / "predictions" / name, sonnets)
    return root


@pytest.fixture
def submit(root, capsys):
    """Run the program on the tree: returns its exit code, and all that it printed."""

    def submit(*arguments):
        code = 0
        try:
            prepare_submit.main(["--root", str(root), *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return submit


def archive(root: Path) -> Path:
    return root / prepare_submit.ZIP_NAME


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    write(path, text.replace(old, new, 1))


def test_a_whole_tree_becomes_a_zip_with_the_expected_names(root, submit):
    code, output = submit()
    assert code == 0, output
    with zipfile.ZipFile(archive(root)) as opened:
        names, bad = opened.namelist(), opened.testzip()
    predictions = [*SENTIMENT, *(path.replace("finetune", "full-model") for path in SENTIMENT)]
    predictions = [path.replace("pretrain", "last-linear-layer") for path in predictions]
    expected = {*CODE, "extensions/lora.py", "extensions/README.md"}
    expected |= {PARA, PARA.replace("test", "dev"), POEMS}
    expected |= {"predictions/generated_sonnets_dev.txt", *SENTIMENT, *predictions}
    assert names == sorted(expected) and bad is None
    assert all(name in output for name in names)
    assert f"{len(names)} files, {archive(root).stat().st_size:,} bytes" in output


def test_the_later_names_hold_the_same_predictions(root, submit):
    submit()
    with zipfile.ZipFile(archive(root)) as opened:
        for name, split in (("sst", "dev"), ("cfimdb", "test")):
            for earlier, later in (("finetune", "full-model"), ("pretrain", "last-linear-layer")):
                file = f"predictions/{earlier}-{name}-{split}-out.csv"
                assert opened.read(file) == opened.read(file.replace(earlier, later))
                assert opened.read(file) == (root / file).read_bytes()


def test_two_calls_give_equal_bytes_whatever_the_dates_and_permissions(root, submit, tmp_path):
    submit()
    for path in root.rglob("*.py"):
        path.touch()
        path.chmod(0o600)
    assert submit("--out", tmp_path / "again.zip")[0] == 0
    assert (tmp_path / "again.zip").read_bytes() == archive(root).read_bytes()


def test_caches_weights_hidden_files_and_folders_stay_out(root, submit):
    submit()
    before = archive(root).read_bytes()
    for name in (
        *("modules/__pycache__/attention.cpython-311.pyc", "runs/sst/best.safetensors"),
        *(".hidden.py", "models/.gpt2.py", "models/gpt2.pt", "predictions/notes.txt"),
        *("pretrained/gpt2-mini/config.json", "extensions/__pycache__/lora.cpython-311.pyc"),
    ):
        write(root / name, "x")
    (root / "extensions" / "empty.py").mkdir()
    assert submit()[0] == 0
    assert archive(root).read_bytes() == before


def test_a_tree_without_extensions_is_whole_too(root, submit):
    for path in (root / "extensions").iterdir():
        path.unlink()
    assert submit()[0] == 0


DEFECTS = {
    "header": (SST, "Predicted_Sentiment", "Sentiment", "line 1: found 'id, Sentiment'"),
    "label range": (SST, "a1f0, 3", "a1f0, 5", "line 2: found the value '5'"),
    "label": (SST, "a1f0, 3", "a1f0, good", "line 2: found the value 'good'"),
    "binary": (SENTIMENT[2], "b2e1, 0", "b2e1, 2", "line 3: found the value '2', expected one of"),
    "answer": (PARA, "b2e1, 3919", "b2e1, 0", "expected one of 8505, 3919"),
    "row": (SST, "b2e1, 0", "b2e1 0", "line 3: found 'b2e1 0', expected 'id, value'"),
    "unknown id": (SST, "c3d2", "ffff", "line 4: found id ffff, expected an id of ids-sst-dev.csv"),
    "id twice": (
        SST,
        "b2e1",
        "a1f0",
        "line 3: found id a1f0 again, expected it once: it stands in",
    ),
    "missing id": (
        SST,
        "c3d2, 4 \n",
        "",
        "line 3: the file ends, and 1 of the 3 ids of ids-sst-de",
    ),
    "last lines": (PARA, "b2e1, 3919 \nc3d2, 8505 \n", "", "2 of the 4 ids of quora-test-student"),
    "sonnets' header": (POEMS, "--Generated Sonnets--", "Sonnets", "line 1: found 'Sonnets'"),
    "sonnet without text": (POEMS, "Two loves I have", "", "found sonnet 156 without text"),
    "sonnet missing": (POEMS, "\n156\n", "\n", "ends after 1 sonnets, expected 2 as in sonnets_h"),
    "sonnet too many": (POEMS, "That she is", "144\nThat she", "ends after 3 sonnets, expected 2"),
    "sonnet twice": (POEMS, "156", "155", "line 9: found index 155 again"),
    "text before sonnets": (
        POEMS,
        "\n\n",
        "\nA poem\n",
        "line 2: found 'A poem', expected a sonne",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_told_with_its_file_line_and_remedy_and_no_zip_appears(root, submit, defect):
    name, old, new, message = DEFECTS[defect]
    edit(root / name, old, new)
    code, output = submit()
    assert code == 2 and not archive(root).exists()
    assert f"{name}, line " in output and message in output
    assert f"-> {prepare_submit.required_predictions()[name].remedy}\n" in output
    assert output.endswith("files to mend, as told above: 1\n")


def test_a_file_that_is_not_utf8_is_told_with_line_and_byte(root, submit):
    (root / SST).write_bytes((root / SST).read_bytes().replace(b"b2e1", b"b2\xff1"))
    code, output = submit()
    assert code == 2 and f"{SST}, line 3: found the byte 0xff, expected UTF-8" in output


@pytest.mark.parametrize("name", [SST, PARA, POEMS, "modules/attention.py", "setup.sh"])
def test_a_missing_and_an_empty_file_are_told(root, submit, name):
    write(root / name, "")
    assert submit()[0] == 2
    (root / name).unlink()
    code, output = submit()
    assert code == 2 and f"{name}: the file is missing" in output and not archive(root).exists()


def test_missing_data_is_told_once_with_the_command_that_brings_it(root, submit):
    (root / "data" / "ids-sst-dev.csv").unlink()
    (root / "data" / "sonnets_held_out.txt").unlink()
    code, output = submit()
    assert code == 2 and not archive(root).exists()
    assert output.count("ids-sst-dev.csv: no such file") == 1
    assert output.count("    -> python data/download.py\n") == 2


def test_everything_wrong_is_told_in_one_go(root, submit):
    (root / "models" / "gpt2.py").unlink()
    (root / "data" / "quora-dev.csv").unlink()
    (root / PARA).unlink()
    edit(root / SST, "a1f0, 3", "a1f0, 9")
    edit(root / SST, "c3d2", "ffff")
    edit(root / POEMS, "Two loves I have", "")
    code, output = submit()
    assert code == 2 and "files to mend, as told above: 5" in output
    for part in (
        *("models/gpt2.py: the file is missing", "quora-dev.csv: no such file", f"{PARA}: the"),
        *(f"{SST}, line 2: found the value '9'", f"{SST}, line 4: found id ffff", FULL_MODEL),
        *(f"{SST}, line 4: the file ends, and 1 of", "found sonnet 156 without text"),
        *(
            "-> python paraphrase_detection.py --use_gpu",
            "-> python sonnet_generation.py --use_gpu",
        ),
    ):
        assert part in output


def test_a_thousand_problems_of_one_file_are_counted_not_printed(root, submit):
    rows = "".join(f"ff{i:04}, 9 \n" for i in range(1000))
    write(root / SST, f"id, Predicted_Sentiment \n{rows}")
    _, output = submit()
    assert f"{SST}: and 1991 more problems" in output and len(output.splitlines()) < 20


def test_an_older_zip_is_left_as_it_is(root, submit):
    archive(root).write_bytes(b"older")
    edit(root / SST, "a1f0, 3", "a1f0, 9")
    assert submit()[0] == 2
    assert archive(root).read_bytes() == b"older"
    assert not list(root.glob(".*.tmp"))


def test_incomplete_quora_rows_may_be_predicted_or_not(root, submit):
    for split in ("dev", "test"):
        with open(root / f"predictions/para-{split}-output.csv", "a", encoding="utf-8") as file:
            file.write("d4, 3919 \n")
    assert submit()[0] == 0


def test_trailing_blanks_windows_line_ends_and_upper_case_ids_are_tolerated(root, submit):
    for name in (SST, PARA, POEMS):
        text = (root / name).read_text(encoding="utf-8").replace("a1f0", "A1F0")
        (root / name).write_bytes(text.replace("\n", "  \r\n").encode() + b"\n\n")
    code, output = submit()
    assert code == 0, output


def test_sonnets_with_line_ends_of_old_macs_are_read(root, submit):
    text = (root / POEMS).read_bytes()
    (root / POEMS).write_bytes(text.replace(b"\n", b"\r"))
    assert submit()[0] == 0


def test_what_the_programs_write_is_what_is_expected_here():
    wanted = prepare_submit.required_predictions()
    answers = prediction_files.ANSWER_TOKENS.values()
    assert set(wanted[PARA].values) == {str(answer) for answer in answers}
    assert submission_form.NUM_LABELS == classifier.NUM_LABELS
    assert {later: name for name, later in prepare_submit.LATER_NAMES.items()} == (
        classifier.OUTPUT_NAMES
    )


def test_the_header_of_generated_sonnets_stands_in_one_module():
    texts = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("engine/*.py")}
    assert [name for name in texts if submission_form.SONNET_HEADER in texts[name]] == [
        "records.py"
    ]


def test_the_zip_holds_every_module_of_ours_that_its_code_imports():
    files = prepare_submit.code_files(ROOT)
    modules = {name.removesuffix(".py").replace("/", ".") for name in files}
    for name in files:
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            imported = [node.module] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in imported:
                ours = module and (ROOT / f"{module.replace('.', '/')}.py").is_file()
                assert not ours or module in modules, f"{name} imports {module}"


def test_it_starts_without_torch():
    code = "import sys, prepare_submit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.skipif(not COURSE.is_dir(), reason="needs the course's files in ../shared/data")
def test_predictions_for_every_row_of_the_course_s_data_pass():
    for wanted in prepare_submit.required_predictions().values():
        if isinstance(wanted, submission_form.Table):
            ids = wanted.ids(COURSE)
            rows = [f"{sent_id}, {wanted.values[0]} \n" for sent_id in ids]
            text = "".join([f"id, {wanted.column} \n", *rows])
            assert len(ids) > 200 and wanted.problems(text, ids) == []
            assert len(wanted.problems("".join(rows[:-1]), ids)) == 2


# -- what a zip needs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*CODE} - {"demo.py", "pretrain.py"}))
def test_no_file_that_the_programs_import_or_set_up_with_may_be_missing(root, submit, name):
    needed = name in prepare_submit.required_code(root)
    (root / name).unlink()
    code, output = submit()
    assert (code == 2) == needed and (f"{name}: the file is missing" in output) == needed


def test_what_is_required_follows_from_the_imports(root, submit):
    needed = prepare_submit.required_code(root)
    assert {"engine/batches.py", "engine/flags.py", "modules/attention.py"} <= set(needed)
    text = (root / "utils.py").read_text(encoding="utf-8")
    write(root / "utils.py", f"{text}\nfrom modules.rotary import Rotary\nimport tokens\n")
    code, output = submit()
    assert code == 2 and "modules/rotary.py: the file is missing" in output
    assert "tokens.py: the file is missing" in output


def test_every_file_that_setup_names_is_in_the_zip():
    text = (ROOT / "setup.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./])[\w/]+\.(?:py|yml|txt)\b", text))
    assert {"env.yml", "requirements.txt", "data/download.py"} <= named
    assert named <= set(prepare_submit.required_code(ROOT))


@pytest.fixture
def unpacked(root, submit, tmp_path):
    assert submit()[0] == 0
    with zipfile.ZipFile(archive(root)) as opened:
        opened.extractall(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_a_zip_that_is_unpacked_elsewhere_runs_and_can_be_packed_again(root, unpacked):
    def run(*words):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=unpacked, capture_output=True, text=True)

    for program in ("classifier.py", "paraphrase_detection.py", "sonnet_generation.py"):
        helped = run(program, "--help")
        assert helped.returncode == 0, helped.stderr
    assert run("optimizer_test.py").stdout.endswith("Optimizer test passed!\n")
    again = run("prepare_submit.py", "--data_dir", root / "data")
    assert again.returncode == 0, again.stderr
    assert archive(unpacked).read_bytes() == archive(root).read_bytes()


# -- where predictions come from ---------------------------------------------------------------


def test_the_course_s_own_header_is_read(root, submit):
    for name in (SST, PARA):
        column = "Predicted_Sentiment" if name == SST else "Predicted_Is_Paraphrase"
        edit(root / name, f"id, {column} ", f"id \t {column} ")
    code, output = submit()
    assert code == 0, output


def test_the_second_names_are_explained(root, submit):
    _, output = submit()
    second = SST.replace("finetune", "full-model")
    assert f"  {second} = {SST}\n" in output and output.count(" = predictions/") == 8
    assert "a = b: sentiment predictions again" in output


def below(output: str, name: str) -> list[str]:
    """The lines that stand below a file in the listing."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(f"  {name}")) + 1
    return [line.strip() for line in itertools.takewhile(lambda x: x[:12].isspace(), lines[start:])]


def test_each_prediction_file_is_shown_with_the_run_that_made_it(root, submit):
    made = SimpleNamespace(model_size="gpt2", extension=["lora:rank=4"], limit=None)
    folder = root / "runs" / "sst-full-model-gpt2-0a1b2c3d"
    folder.mkdir(parents=True)
    prediction_files.write_record(folder, root / SST, made, {"acc": 0.51234})
    checkpoint = folder / "best.safetensors"
    prediction_files.write_record(checkpoint, root / POEMS, made, {"chrF": 41.5})
    changed = root / PARA
    prediction_files.write_record(folder, changed, made, {"acc": 0.8})
    edit(changed, "b2e1, 3919", "b2e1, 8505")
    _, output = submit()
    assert below(output, SST)[0] == f"{folder}, gpt2, lora:rank=4, dev acc 0.512"
    assert below(output, POEMS)[0] == f"{checkpoint}, gpt2, lora:rank=4, dev chrF 41.500"
    for name in (PARA, SENTIMENT[2]):
        assert below(output, name)[0] == f"no run in {root / 'runs'} wrote this file as it is"


def test_one_class_for_all_rows_and_less_than_the_most_frequent_class_are_warned_of(root, submit):
    """Of the dev labels all are 1; the predictions are 3, 0, 4."""
    dull = "predictions/finetune-sst-test-out.csv"
    prediction_files.write_predictions(root / dull, "Predicted_Sentiment", IDS, [2, 2, 2])
    code, output = submit()
    assert code == 0
    assert "warning: all 3 rows have one and the same class" in below(output, dull)
    [warning] = [line for line in below(output, SST) if line.startswith("warning")]
    assert warning.startswith("warning: dev acc 0.000, below 1.000, which the most frequent")


# -- what must not get into the zip ------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.py", "engine/notes.py", POEMS, "utils.py"])
def test_a_link_is_named_and_refused(name, root, submit, tmp_path):
    secret = tmp_path / "secret"
    write(secret, "private")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(secret)
    code, output = submit()
    assert code == 2 and f"{name}: a link to {secret}, expected a file of the tree" in output
    assert not archive(root).exists()


def test_a_linked_folder_is_refused_by_its_files(root, submit, tmp_path):
    shutil.move(root / "modules", tmp_path / "modules")
    (root / "modules").symlink_to(tmp_path / "modules")
    code, output = submit()
    assert code == 2 and "modules/attention.py: a link to " in output


def test_the_tree_itself_may_be_reached_by_a_link(root, submit, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert submit("--root", tmp_path / "link")[0] == 0


def test_files_that_git_does_not_track_are_listed(root, submit):
    def git(*words):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)

    assert "not tracked" not in submit()[1]
    git("init", "-q")
    git("add", "*.py", "*/*.py", ":/")
    write(root / "notes.py", "x = 1\n")
    code, output = submit()
    assert code == 0 and "warning: not tracked by git, and yet in the zip: notes.py\n" in output
