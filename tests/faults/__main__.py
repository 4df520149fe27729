"""``make faults``: many faults in a row on the test bed, two users' clusters at the same time. Usage: python -m tests.faults --help."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import sys

from tests.faults import kinds, runner
from tests.faults.victim import Victim
from tests.testbed import Bed


def _one(bed: Bed, user: str, count: int, seed: int, names: list[str], flags: list[str]) -> runner.Result:
    dice = random.Random(f"{seed} {user}")
    planned = runner.schedule(count, dice, names)
    victim = Victim(bed, user)
    try:
        victim.start(*flags)
        return runner.run(victim, planned, dice)
    finally:
        victim.stop()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="faults to inject (default: 300)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of kinds, order and moments")
    parser.add_argument("--users", default="alice,bob", help="whose clusters suffer, at the same time (default: alice,bob)")
    parser.add_argument("--kind", action="append", default=[], metavar="WORDS", help="only kinds with these words in their name")
    args = parser.parse_args(argv)
    names = [name for name in kinds.KINDS if any(words in name for words in args.kind)]
    if args.kind and not names:
        parser.error(f"--kind: no kind of fault has {' or '.join(args.kind)} in its name: {'; '.join(kinds.KINDS)}")
    users = args.users.split(",")
    shares = [args.count // len(users) + (number < args.count % len(users)) for number in range(len(users))]
    kept = "HPK_TESTBED" in os.environ
    bed = Bed(None if kept else "faults")
    if not kept:
        bed.down()
    bed.up()
    total = runner.Result()
    try:
        with concurrent.futures.ThreadPoolExecutor(len(users)) as pool:
            runs = [pool.submit(_one, bed, user, share, args.seed, names, []) for user, share in zip(users, shares, strict=True)]
            for done in concurrent.futures.as_completed(runs):
                total.merge(done.result())
    finally:
        if not kept:
            bed.down(wipe=True)
    print(f"seed {args.seed}, {total.seconds / 60:.0f} minutes\n\n{total.table()}\n")
    for problem in total.problems:
        print(problem)
    all_ = total.total
    print(f"injected {all_.injected} / lost {all_.lost} / doubled {all_.doubled}")
    return 0 if not total.problems and all_.injected == args.count else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
