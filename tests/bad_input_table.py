"""Write docs/errors.md: what the commands say to every mistake of tests/bad_input."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bad_input import CASES, GROUPS
from bad_input.provoke import make_materials, page, provoke, row

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


def main():
    with tempfile.TemporaryDirectory() as folder:
        materials = make_materials(Path(folder))
        rows = {}
        for case in CASES:
            if not case.possible:
                raise SystemExit(f"{case.title}: needs {', '.join(case.needs)}; install the test group")
            outcome = provoke(case, materials)
            if outcome.code != 2 or len(outcome.lines) != 1:
                print(f"!! {case.title}: exit code {outcome.code}\n{outcome.stderr}")
            rows[case] = row(case, outcome)
        materials.store.close()
    PAGE.write_text(page(GROUPS, rows), encoding="utf-8")
    print(f"{PAGE}: {len(rows)} cases")


if __name__ == "__main__":
    main()
