"""`make study`: does optimising X buy Y? The commands that a user would type: prepare five
patients, 60 designs, one comparison.

    python scripts/study.py [out]      default runs/objectives_study; goes on where it was, however
    it was ended

The real patients are found through SPINEFIT_DATA (default ../shared/data). Two and a half hours on
two cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console import command
from scripts.console.children import SCRIPTS, folder_of, run_command
from scripts.console.overrides import quoted

HELP = """python scripts/study.py [FOLDER]

Does optimising X buy Y? Prepares five patients below cases/, runs 60 designs (four objective
sets, three starts each) and writes one comparison beside the folder. Two and a half hours on two
cores; the same line goes on where it was. The real patients are found through SPINEFIT_DATA
(default ../shared/data).

Options:
  FOLDER  where the runs go; the comparison goes to FOLDER_page  [runs/objectives_study]

Examples:
  python scripts/study.py
  python scripts/study.py runs/my_study
  SPINEFIT_DATA=/data/spines python scripts/study.py '/tmp/study (2)'"""


def patients(data: Path) -> dict[str, list[str]]:
    """What prepare_patient.py is told of each patient."""
    mask = data / "verse004_mask" / "sub-verse004_seg-vert_msk.nii.gz"
    return {
        "phantom_normal": ["source.spec.trabecular_g_cm3=0.18"],
        "phantom_osteopenic": ["source.spec.trabecular_g_cm3=0.11"],
        "phantom_wedged": [
            "source.spec.coronal_deg=7",
            "source.spec.lordosis_deg=2",
            "source.spec.height_middle_mm=7",
            "source.spec.seed=1",
        ],
        "verse004": ["source=mask", quoted("source.path", mask)],
        "vhm": ["source=surfaces", quoted("source.path", data / "lumbar_meshes")],
    }


def study(arguments: Sequence[str]) -> int:
    """Prepare what is missing, sweep, compare."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    out = folder_of(arguments, "runs/objectives_study")
    data = Path(os.environ.get("SPINEFIT_DATA") or SCRIPTS.parent.parent / "shared" / "data")
    if not data.is_dir():
        raise ValueError(
            f"no test data in {data}; set SPINEFIT_DATA to the folder that holds verse004_mask and"
            " lumbar_meshes"
        )
    print(
        f"study of objectives: five patients, 60 designs\nfolder: {out}\nexpected: 2.5 h on two"
        " cores, less what is there",
        file=sys.stderr,
        flush=True,
    )
    for name, words in patients(data).items():
        if not Path("cases", name, "segment", "segment.json").exists():
            if code := run_command(
                "prepare_patient.py", [*words, "segment=L4-L5", quoted("out", f"cases/{name}")]
            ):
                return code
    code = run_command("optimize.py", ["-m", "experiment=objectives_study", quoted("out", out)])
    return (
        code
        if code not in (0, 1)
        else run_command("compare.py", [quoted("runs", [out]), quoted("out", f"{out}_page")])
        or code
    )


if __name__ == "__main__":
    sys.exit(command.run(lambda: study(sys.argv[1:])))
