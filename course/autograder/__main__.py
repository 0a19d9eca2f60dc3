"""Grade a submission, or make the zip for Gradescope.

python -m course.autograder grade SUBMISSION --gold DIR --out results.json
python -m course.autograder build --gold DIR        writes autograder.zip
"""

import os
import sys
from pathlib import Path

from engine.errors import Parser, command
from engine.files import ROOT

# isort: split

from course.autograder.build import build
from course.autograder.grade import RIGHT, close_folders, grade
from course.autograder.results import Results
from course.autograder.rubric import POINTS, read_rubric
from course.gold import SPLITS, scored


def parser() -> Parser:
    made = Parser(__doc__)
    programs = made.add_subparsers(dest="program", required=True)
    grading = programs.add_parser("grade", help="grade one submission")
    grading.add_argument("submission", type=Path, help="a zip, or a folder")
    grading.add_argument("--out", type=Path, default=Path("results.json"))
    grading.add_argument("--close", type=Path, nargs="*", default=[], help="folders for root alone")
    building = programs.add_parser("build", help="make the zip for Gradescope")
    building.add_argument("--out", type=Path, default=ROOT / "autograder.zip")
    index = os.environ.get("TORCH_INDEX_URL", "")
    building.add_argument("--torch_index", default=index, help="of torch's CPU build, a URL")
    for program in (grading, building):
        program.add_argument("--gold", type=Path, help="a folder of answers; without: code alone")
        program.add_argument("--split", choices=SPLITS, default="dev", help="of the answers")
        program.add_argument("--points", type=Path, default=POINTS)
    return made


@command
def main(argv=None):
    args = parser().parse_args(argv)
    rubric = read_rubric(args.points)
    names = scored(args.gold, args.split) if args.gold else ()
    if args.program == "build":
        answers = {"gold": args.gold, "split": args.split}
        files = build(args.out, points=args.points, torch_index=args.torch_index, **answers)
        print(f"{args.out}: {len(files)} files, {args.out.stat().st_size:,} bytes")
        return
    close_folders(*args.close)
    results = Results(args.out, rubric, names)
    grade(args.submission, results, gold=args.gold, split=args.split)
    for test in results.tests.values():
        print(f"{test['score']:6.2f} of {test['max_score']:5.2f}  {test['name']}")
        if test["output"] != RIGHT:
            print(f"{'':18}{test['output']}")
    if results.output:
        print(results.output)
    most = sum(test["max_score"] for test in results.tests.values())
    print(f"{results.score:.2f} of {most:.2f} points: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
