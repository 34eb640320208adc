"""Answers of every file for the held-back pictures, once: accuracy, and agreement with fp32.

    python -m benchmarks.peers.scoring [CASE …]

ONNX files answer through the session that ships, picture by picture; OpenVINO's in its own environment. Answers are
kept by the hashes of file and pictures, so that a finished one is not repeated. Writes the records.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.peers import record
from benchmarks.peers.answering import answers
from benchmarks.peers.entrants import entrants
from benchmarks.peers.places import CASES, parts


def main() -> int:
    """Score what is not scored yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    for case in parser.parse_args().cases:
        for part in parts(case):
            for entrant in entrants(part):
                _, error = answers(part, entrant)
                print(f"{part}: {entrant.name}: {error or 'scored'}", flush=True)
        print(f"{case}: {record.write(case)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
