"""What people get wrong, as data: how to bring it about, and what the error line must contain."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

TASKS = {"c": "classifier", "p": "paraphrase_detection", "s": "sonnet_generation"}
HEADER = "\tid\tsentence\tsentiment"
PAIRS = "\tid\tsentence1\tsentence2\tis_duplicate"
TRAIN, QUORA, SONNETS = "data/ids-sst-train.csv", "data/quora-train.csv", "data/sonnets.txt"
HELD_OUT = "data/sonnets_held_out.txt"
WEIGHTS, CONFIG, TOKENIZER = (
    f"model/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")
)
FINE = "0\ta\tfine\t1"
LONG = [f"{i}\tid{i}\t{'a long review ' * 20}\t1" for i in range(700)]  # csv's limit: 131,072


@dataclasses.dataclass(frozen=True)
class Case:
    """A program of TASKS, what is wrong (flags, or damage to files), and parts of what is said."""

    name: str
    program: str
    said: tuple[str, ...]
    flags: tuple[str, ...] = ()
    damage: Callable | None = None


def sst(name: str, said: str, *lines: str, header: str = HEADER) -> Case:
    """SST's training file has these lines; parts of `said` stand between bars."""
    return file(name, "c", TRAIN, said, "\n".join([header, *lines]) + "\n")


def quora(name: str, said: str, *lines: str, header: str = PAIRS) -> Case:
    return file(name, "p", QUORA, said, "\n".join([header, *lines]) + "\n")


def file(name: str, program: str, path: str, said: str, data) -> Case:
    """The file has this content, or only a share of what it had; None: it is not there."""

    def damage():
        if data is None:
            Path(path).unlink()
        elif isinstance(data, float):
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: int(data * len(whole))])
        else:
            Path(path).write_bytes(data.encode() if isinstance(data, str) else data)

    return Case(name, program, (path, *said.split("|")), (), damage)


def flag(programs: str, flags: str, said: str) -> list[Case]:
    """A case for each program; the flags are written as on a command line."""
    words = tuple(flags.split())
    return [Case(f"{flags}, {p}", p, tuple(said.split("|")), words) for p in programs]


def value(programs: str, name: str, values: str, said: str) -> list[Case]:
    """A case for each program and each value; the flag itself must be named."""
    return [
        case
        for word in values.split()
        for case in flag(programs, f"{name} {word}", f"{name} {word}: |{said}")
    ]


def folder(name: str, program: str, path: str, said: str, data) -> Case:
    """As `file`, but the message need not name the file: what is said names the folder."""
    return dataclasses.replace(file(name, program, path, "", data), said=tuple(said.split("|")))


def instead_of_weights(name: str, path: str, said: str, data: bytes) -> Case:
    case = file(name, "c", path, said, data)
    return dataclasses.replace(case, damage=lambda: (Path(WEIGHTS).unlink(), case.damage()))


TABLES = [
    sst("wrong header", "line 1|sentence|expected", FINE, header="\tid\ttext\tsentiment"),
    sst("commas", "line 1|tab-separated", "0,a,fine,1", header=",id,sentence,sentiment"),
    sst("missing column", "line 1|sentiment", "0\ta\tfine", header="\tid\tsentence"),
    file("empty file", "c", TRAIN, "empty|download.py", ""),
    file("blank file", "c", TRAIN, "empty|download.py", "\n \n\n"),
    sst("header only", "no rows|download.py"),
    sst("unknown label", "line 3|sentiment|'good'|[0, 1, 2, 3, 4]", FINE, "1\tb\tfine\tgood"),
    sst("label too high", "line 3|sentiment|'5'", FINE, "1\tb\tfine\t5"),
    sst("label negative", "line 3|sentiment|'-1'", FINE, "1\tb\tfine\t-1"),
    sst("label between", "line 3|sentiment|'1.5'", FINE, "1\tb\tfine\t1.5"),
    sst("label nan", "line 3|sentiment|'nan'", FINE, "1\tb\tfine\tnan"),
    sst("label infinite", "line 3|sentiment|'inf'", FINE, "1\tb\tfine\tinf"),
    sst("label empty", "line 3|sentiment|''", FINE, "1\tb\tfine\t"),
    sst("id twice", "line 4|id b ", FINE, "1\tB \tbad\t0", "2\t b\tgood\t1"),
    sst("id empty", "line 3|id is empty", FINE, "1\t \tfine\t1"),
    sst("row cut short", "line 3|3 cells|expected 4", FINE, "1\tb\tfine", FINE),
    sst("row too long", "line 3|5 cells|expected 4", FINE, "1\tb\tfine\tvery\t1"),
    sst("quote open", "line 3|quote", FINE, '1\tb\t"fine\t1', "2\tc\tfine\t1"),
    sst("quote open at the end", "line 3|quote", FINE, '1\tb\t"fine\t1'),
    sst("quote closed later", "line 3|quote", FINE, '1\tb\t"fine\t1', '2\tc\tso "fine\t1'),
    sst("quote open in a long file", "line 2|quote", '0\ta\t"fine\t1', *LONG),
    file("not UTF-8", "c", TRAIN, "line 2|0xe9|save the file as UTF-8", b"\tid\n0\tcaf\xe9\n"),
    file("UTF-16", "c", TRAIN, "line 1|UTF-8", f"{HEADER}\n{FINE}".encode("utf-16")),
    file("no such file", "c", TRAIN, "no such file|download.py", None),
    *flag(
        "cps",
        "--data_dir elsewhere",
        "elsewhere/|no such file in /|/elsewhere: |python data/download.py|--data_dir data/sample",
    ),
    *flag("p", "--para_train data", "data: |no such file"),
    quora("pairs without labels", "line 1|is_duplicate", "0\ta\tx\ty", header=PAIRS[:-13]),
    quora("pair's label", "line 2|'2.0'|[0, 1]", "0\ta\tx\ty\t2.0"),
    quora("pair too long", "line 2|6 cells|expected 5", "0\ta\tx\ty\tz\t1"),
    quora("pair twice", "line 3|id a ", "0\ta\tx\ty\t1", "1\tA\tx\ty\t1"),
    quora("pairs all incomplete", "every row", "0\ta\tx\t\t1.0"),
    quora("pair's quote open", "line 2|quote", '0\ta\t"x\ty\t1.0', "1\tb\tx\ty\t1"),
    file("sonnets without numbers", "s", SONNETS, "no sonnet|number", "Shall I\ncompare\n"),
    file("a sonnet without text", "s", SONNETS, "sonnet 2|no text", "1\n\nI\n\n2\n\n3\n\nthee"),
    file("a sonnet twice", "s", SONNETS, "1 stands twice", "1\n\nShall I\n\n1\n\nthee\n"),
    file("a heading or a verse", "s", SONNETS, "line 4|'II'|comma", "1\n\nlove\nII\nhate\n"),
    file("three lines in all", "s", SONNETS, "3 lines in|11|complete", "1\nI\n2\nlove\n3\nthee"),
    file("sonnets empty", "s", SONNETS, "empty", ""),
    *flag("s", "--sonnet_path nowhere.txt", "nowhere.txt|no such file"),
    *flag("s", "--held_out_sonnet_path nowhere.txt", "nowhere.txt|no such file"),
    *flag("s", "--dev_sonnet_path nowhere.txt", "nowhere.txt|no such file"),
    file("prompts not UTF-8", "s", HELD_OUT, "line 3|0xff", b"1\n\n\xff\n"),
]

TEXTS = [
    sst("sentence empty", "id-b|0 tokens", FINE, "1\tid-b\t \t1"),
    *value("cps", "--max_length", "0", "expected at least 1"),
    *value("cps", "--max_length", "513", "expected from 1 to 512"),
    *flag("p", "--max_length 8", "data/quora-train.csv|tokens, expected 1 to 8"),
    file("prompt too long", "s", HELD_OUT, "7: |511", "7\n\n" + "z! " * 400),
]

CHECKPOINTS = [
    Case(f"--checkpoint {path}, {p}", p, (path, said), ("--checkpoint", path))
    for p in TASKS
    for path, said in (
        ("nowhere.safetensors", "no such checkpoint"),
        ("data", "a folder, expected a file: give its best.safetensors"),
        ("a-file", "train again"),
        ("empty-file", "train again"),
        ("pickle.pt", "train again"),
        (WEIGHTS, "no whole checkpoint of this project"),
    )
]

MODELS = [
    file("weights truncated", "c", WEIGHTS, "header|copy", 0.5),
    file("weights cut in the header", "p", WEIGHTS, "header|copy", 0.001),
    file("weights empty", "s", WEIGHTS, "header|copy", ""),
    folder("no weights", "c", WEIGHTS, "model: |model.safetensors|pytorch_model.bin|copy", None),
    instead_of_weights("pickle garbage", "model/pytorch_model.bin", "copy", b"garbage"),
    instead_of_weights("index garbage", "model/model.safetensors.index.json", "copy", b"{"),
    file("no config", "s", CONFIG, "not found", None),
    file("config garbage", "s", CONFIG, "not a valid JSON|copy", "{"),
    folder("tokenizer garbage", "c", TOKENIZER, "model: |cannot be read|copy", "{garbage"),
    folder("tokenizer truncated", "s", TOKENIZER, "model: |cannot be read|copy", 0.5),
    folder("strange tokenizer", "p", TOKENIZER, "model: |cannot be read|copy", '{"version": "1"}'),
    *(
        folder(f"no tokenizer, {p}", p, TOKENIZER, "model: |tokenizer.json|copy", None)
        for p in TASKS
    ),
    *flag("cps", "--model_size ./nowhere", "./nowhere|no such folder|size name"),
    *flag("c", "--model_size gpt2-huge", "gpt2-huge|neither a folder|HF_HOME"),
]

FLAGS = [
    *value("cps", "--epochs", "0 -1", "expected at least 1"),
    *value("cps", "--batch_size", "0", "expected at least 1"),
    *value("cps", "--limit", "0", "expected at least 1"),
    *value("cps", "--accumulate", "0", "expected at least 1"),
    *value("cps", "--lr", "-0.001 nan inf", "expected at least 0"),
    *value("cps", "--seed", f"-1 {2**32}", "expected"),
    *value("c", "--hidden_dropout_prob", "-0.1 1.5 nan", "expected from 0 to 1"),
    *value("p", "--warmup", "-0.1 1.5 nan", "expected from 0 to 1"),
    *value("s", "--temperature", "-0.7 nan inf", "expected at least 0"),
    *value("s", "--top_p", "-0.1 1.01 nan", "expected"),
    *value("s", "--max_new_tokens", "0", "expected at least 1"),
    *value("s", "--top_k", "-1", "expected at least 0"),
    *value("s", "--patience", "-1", "expected at least 0"),
    *flag("cps", "--use_gpu", "--use_gpu: |0 CUDA GPUs|leave --use_gpu out"),
    *flag("cps", "--bf16", "--bf16: |add --use_gpu"),
    *flag("cps", "--extension no-such", "--extension no-such: "),
    *flag("cps", "--extension no-such:rank=1", "--extension no-such: "),
    *flag("cps", "--resume", "--resume: |leave --resume out"),
    *flag("c", "--dev_out x --dataset all", "--dev_out|--dataset"),
    *flag("c", "--test_out x --dataset all", "--test_out|--dataset"),
    *flag("c", "--checkpoint x --dataset all", "--checkpoint|--dataset"),
]

BLOCKED = [
    *(
        Case(f"{where} {what}", program, (what, said), (where, path))
        for program, where in (
            ("c", "--dev_out"),
            ("c", "--test_out"),
            ("p", "--para_dev_out"),
            ("s", "--sonnet_out"),
            ("s", "--dev_sonnet_out"),
            ("c", "--runs_dir"),
        )
        for what, path, said in (
            ("a-file", "a-file/deep/x", "cannot be written"),
            ("/proc", "/proc/nowhere/x", "cannot be written"),
            ("data", "data", "folder"),
        )
        if (where, what) != ("--runs_dir", "data")  # a folder is what runs_dir should be
    ),
]

CASES = [*TABLES, *TEXTS, *CHECKPOINTS, *MODELS, *FLAGS, *BLOCKED]
